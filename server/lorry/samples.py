"""The adapters that come with Lorry, offered once to a server with the base that they fit.

The offers are recorded in the home folder, so that a sample that the user removed does not come
back at the next start.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import lorry_adapters
from lorry.advice import message_of
from lorry_adapters.errors import AdapterError, StoreUnavailable
from lorry_adapters.registry import document
from lorry_adapters.registry.archive import Upload
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.registry import Registry

logger = logging.getLogger(__name__)

OFFERED_FILE = "samples-offered.json"


@dataclass(frozen=True, slots=True)
class SampleAdapter:
    name: str
    description: str
    folder: Path


def folder() -> Path:
    """`lorry_adapters/samples` in an installation, `adapters/samples` in a checkout."""
    package = Path(str(files(lorry_adapters)))
    installed = package / "samples"
    return installed if installed.is_dir() else package.parent / "samples"


def samples_for(base: str) -> tuple[SampleAdapter, ...]:
    """Return the samples trained on `base`, the alias or path as the user gave it."""
    index = folder() / "samples.json"
    if not index.is_file():
        return ()
    content = json.loads(index.read_text("utf-8"))
    if content["base"] != base:
        return ()
    return tuple(
        SampleAdapter(entry["name"], entry["description"], folder() / entry["name"])
        for entry in content["samples"]
    )


def offer(registry: Registry, base: str, home: Path) -> tuple[str, ...]:
    """Register the samples for `base` that were not offered to this home yet. Return their names.

    A catalog that servers share gets them only while it is empty. A name that the user gave to
    their own adapter is skipped. Samples whose records were lost with the home's are offered
    again, and no others, as far as that can be determined.
    """
    if registry.storage.ledger.began:
        # Its adapters are not this home's alone: a sample that is missing was removed.
        return ()
    samples = samples_for(base)
    path = home / OFFERED_FILE
    offered = _offered(path, samples) - _lost(registry, samples)
    added: list[str] = []
    for sample in samples:
        if sample.name in offered:
            continue
        upload = Upload(
            config=sample.folder / "adapter_config.json",
            weights=sample.folder / "adapter_model.safetensors",
        )
        try:
            registry.add(sample.name, upload, description=sample.description)
        except StoreUnavailable as error:
            # Offered again at the next start.
            logger.warning("sample %s was not registered: %s", sample.name, message_of(error))
            continue
        except AdapterError as error:
            logger.warning("sample %s was not registered: %s", sample.name, message_of(error))
        else:
            added.append(sample.name)
        offered.add(sample.name)
    try:
        document.write(path, sorted(offered))
    except OSError as error:
        logger.warning("%s cannot be written, removed samples may come back: %s", path, error)
    return tuple(added)


def _offered(path: Path, samples: tuple[SampleAdapter, ...]) -> set[str]:
    try:
        value = document.read(path)
    except (document.DamagedDocument, OSError) as error:
        # It was written after all were offered, so a missing sample was removed.
        logger.warning("%s; samples that are missing stay away", error)
        return {sample.name for sample in samples}
    return {name for name in value or () if isinstance(name, str)}


def _lost(registry: Registry, samples: tuple[SampleAdapter, ...]) -> set[str]:
    """Return the samples whose records were lost, if records were lost. A removal by the user also
    deletes the files, so a sample whose files exist was not removed."""
    if registry.storage.ledger.remembers:
        return set()
    known = {record.name for record in registry.records()}
    files = {content.digest for content in registry.unclaimed()}
    began_anew = not known and not files
    return {
        sample.name
        for sample in samples
        if sample.name not in known and (began_anew or digest_of(sample.folder) in files)
    }
