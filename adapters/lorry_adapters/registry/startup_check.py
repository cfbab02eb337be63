"""Decides at startup which stored contents can be served on this base.

Only the sizes of files are checked, which takes a few microseconds for each adapter. A file that
changed without changing its size is found by its digest when it is loaded. An adapter is read and
verified in full only if it was last verified against another base. The catalog stores the
fingerprint of that base's layout.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace as changed

from lorry_adapters.errors import InvalidAdapter, OutOfMemory, Problem, Remedy, StorageFull
from lorry_adapters.lora import room
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import inspect
from lorry_adapters.registry.blobs import Blobs, size_of
from lorry_adapters.registry.catalog import StoredContent
from lorry_adapters.registry.ledgers import AdapterLedger
from lorry_adapters.registry.record import VersionRecord

FILES_GONE = "its files are missing here or were changed on disk; upload it again"

_log = logging.getLogger(__name__)


def fingerprint(layout: BaseLayout) -> str:
    """Return a hash that two bases share exactly if the same adapters fit both."""
    modules = sorted(
        (module.name, module.kind.value, module.in_features, module.out_features)
        for module in layout.modules.values()
    )
    shape = [
        layout.architecture,
        layout.num_layers,
        layout.output_embedding,
        layout.input_embedding,
        layout.tied,
        layout.kv_heads,
        layout.head_size,
        modules,
    ]
    if layout.text:
        shape.append(layout.text)
    if layout.parameters:
        shape.append(
            sorted(
                (path, one.shape.in_features, one.shape.out_features, one.shape.experts)
                for path, one in layout.parameters.items()
            )
        )
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()


def check_at_startup(
    ledger: AdapterLedger, blobs: Blobs, layout: BaseLayout, max_rank: int
) -> dict[str, str]:
    """Return the digests that cannot be served, each with the reason."""
    ours = fingerprint(layout)
    facts = {v.digest: v for record in ledger.adapters() for v in record.versions}
    broken = {}
    for content in ledger.contents():
        if (why := why_not(content, facts[content.digest], blobs, layout, ours, max_rank)) is None:
            if content.layout != ours and is_here(content, blobs):
                try:
                    ledger.save_content(facts[content.digest], changed(content, layout=ours))
                except StorageFull:
                    _log.warning("the disk is full: the next start will verify adapters again")
        else:
            broken[content.digest] = why
            _log.warning("the stored adapter %s cannot be served: %s", content.digest, why)
    return broken


def is_here(content: StoredContent, blobs: Blobs) -> bool:
    """True if the files are in the home folder, by their sizes. Raises OSError."""
    try:
        return size_of(blobs.folder(content.digest)) == content.stored_bytes
    except FileNotFoundError:
        return False


def why_not(
    content: StoredContent,
    facts: VersionRecord,
    blobs: Blobs,
    layout: BaseLayout,
    ours: str,
    max_rank: int,
) -> str | None:
    """Return why a content cannot be served, or None. `ours`: fingerprint of `layout`."""
    folder = blobs.folder(content.digest)
    try:
        here = is_here(content, blobs)
        if not here and not blobs.elsewhere:
            return FILES_GONE
        if facts.rank > max_rank:
            return Problem(
                f"its rank {facts.rank} is above this server's limit of {max_rank}; "
                "raise the limit, or replace the adapter",
                Remedy.RAISE_MAX_RANK,
                needed=facts.rank,
                limit=max_rank,
            )
        # What is in the store is fetched, and verified, when it is needed.
        if here and content.layout != ours:
            if not blobs.intact(content.digest):
                return FILES_GONE
            with room.named("checking it"):
                inspect(folder, layout, max_rank)
    except InvalidAdapter as error:
        return Problem.within(
            f"it does not fit the base model {layout.name}: {error.message}; start the server "
            "with the base it was made for, or replace it",
            error.message,
        )
    except OutOfMemory as error:
        return f"it could not be checked: {error.message}"
    except FileNotFoundError:
        return FILES_GONE
    except OSError as error:
        return f"its files cannot be read ({error}); fix that and restart, or upload it again"
    return None
