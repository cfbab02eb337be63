"""The second copy of the catalog: one small file for each adapter.

    <home>/records/<name>-<16 hex of the name's sha256>.json
    <home>/records/revision.json      of the last removal

Every change of the catalog has a number, the revision, which is in the file that it writes. The
largest one is the state of this copy, which the ledger compares with the catalog's. A removal
leaves no file for its number, so that one is in `revision.json`. Without it, a catalog from before
the removal would look up to date.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from lorry_adapters.registry import document
from lorry_adapters.registry.blobs import DIGEST
from lorry_adapters.registry.document import DamagedDocument, Pending
from lorry_adapters.registry.record import MAX_SCALE, AdapterRecord, VersionRecord, VersionRules
from lorry_adapters.registry.version_rules import check_rules, rules_from, rules_value

FOLDER: Final = "records"

_FORMAT: Final = 1
_LAST_REMOVAL: Final = "revision.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """An adapter's data in the catalog."""

    record: AdapterRecord
    last_version: int
    """The highest number ever used under its name."""
    sizes: Mapping[str, int]
    """Bytes of each content's files, by digest."""


@dataclass(frozen=True, slots=True)
class FoundSidecars:
    sidecars: Mapping[str, Sidecar]
    """By name."""
    revision: int
    """The latest change in this copy; 0 if there is none."""
    damaged: int
    """Number of unreadable files that were moved aside."""


class Sidecars:
    """One thread at a time."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER
        self._folder.mkdir(exist_ok=True)

    def read(self) -> FoundSidecars:
        """Read everything that can be read. Raises OSError if the disk fails."""
        sidecars: dict[str, Sidecar] = {}
        revision = damaged = 0
        for path in sorted(self._folder.iterdir()):
            if path.name.endswith(document.UNFINISHED):
                # From a change that was not completed.
                path.unlink()
                continue
            if path.suffix != ".json":
                continue
            try:
                value = document.read(path)
                if path.name == _LAST_REMOVAL:
                    revision = max(revision, _number(_object(value)["revision"]))
                    continue
                sidecar, its = sidecar_of(_object(value))
                if path.name != _file_of(sidecar.record.name):
                    raise DamagedDocument(f"{path} is another adapter's: {sidecar.record.name!r}")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                _set_aside(path, error)
                damaged += 1
            else:
                sidecars[sidecar.record.name] = sidecar
                revision = max(revision, its)
        return FoundSidecars(sidecars, revision, damaged)

    def prepare(self, sidecar: Sidecar, revision: int) -> Pending:
        """Write one adapter's file under a temporary name. Raises OSError."""
        path = self._folder / _file_of(sidecar.record.name)
        return document.prepare(path, document_of(sidecar, revision))

    def remove(self, name: str, revision: int) -> None:
        """Delete a file. After an OSError the next start does it, as the catalog's revision is
        higher."""
        (self._folder / _file_of(name)).unlink(missing_ok=True)
        document.sync(self._folder)
        document.write(self._folder / _LAST_REMOVAL, {"revision": revision})


def _file_of(name: str) -> str:
    """Return a readable file name, unique even if the file system ignores case."""
    shown = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:64]
    return f"{shown}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def _set_aside(path: Path, error: Exception) -> None:
    aside = f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    _log.warning("%s cannot be read (%s); it is kept as %s", path, error, aside)
    os.rename(path, path.with_name(aside))


def document_of(sidecar: Sidecar, revision: int) -> dict[str, object]:
    record = sidecar.record
    return {
        "format": _FORMAT,
        "revision": revision,
        "name": record.name,
        "enabled": record.enabled,
        "scale": record.scale,
        "pinned": record.pinned,
        "description": record.description,
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
        "current": record.current.version,
        "last_version": sidecar.last_version,
        "rules": rules_value(record.rules),
        "versions": [
            {
                "version": version.version,
                "digest": version.digest,
                "stored_bytes": sidecar.sizes[version.digest],
                "peft_type": version.peft_type,
                "task_type": version.task_type,
                "rank": version.rank,
                "target_modules": list(version.target_modules),
                "parameters": version.parameters,
                "bytes": version.bytes,
                "base_model": version.base_model,
                "virtual_tokens": version.virtual_tokens,
                "invocation": list(version.invocation),
                "scalable": version.scalable,
                "warnings": list(version.warnings),
                "words": list(version.words),
                "created_at": version.created_at.isoformat(),
            }
            for version in record.versions
        ],
    }


def sidecar_of(value: dict[str, Any]) -> tuple[Sidecar, int]:
    """Return an adapter and its revision. Raises ValueError, KeyError, TypeError or
    AttributeError."""
    if value["format"] != _FORMAT:
        raise DamagedDocument(f"format {value['format']!r} is unknown")
    versions = tuple(_version(_object(one)) for one in value["versions"])
    numbers = [version.version for version in versions]
    if numbers != sorted(set(numbers)) or value["current"] not in numbers:
        raise DamagedDocument(f"versions {numbers}, of which {value['current']!r} is current")
    record = AdapterRecord(
        name=_text(value["name"]),
        enabled=bool(value["enabled"]),
        scale=_scale(value["scale"]),
        pinned=bool(value["pinned"]),
        description=_text(value["description"]),
        current=versions[numbers.index(value["current"])],
        versions=versions,
        created_at=datetime.fromisoformat(value["created_at"]),
        updated_at=datetime.fromisoformat(value["updated_at"]),
        # Older files have none.
        rules=rules_from(value["rules"]) if "rules" in value else VersionRules(),
    )
    check_rules(record)
    sizes = {one["digest"]: _number(one["stored_bytes"]) for one in value["versions"]}
    last = max(_number(value["last_version"]), *numbers)
    return Sidecar(record, last, sizes), _number(value["revision"])


def _version(value: dict[str, Any]) -> VersionRecord:
    if DIGEST.fullmatch(value["digest"]) is None:
        # It becomes part of a path.
        raise DamagedDocument(f"{value['digest']!r} is not a digest")
    base_model = value["base_model"]
    return VersionRecord(
        version=_number(value["version"]),
        digest=value["digest"],
        peft_type=_text(value["peft_type"]),
        rank=_number(value["rank"]),
        target_modules=tuple(map(_text, value["target_modules"])),
        parameters=_number(value["parameters"]),
        bytes=_number(value["bytes"]),
        base_model=None if base_model is None else _text(base_model),
        created_at=datetime.fromisoformat(value["created_at"]),
        task_type=_text(value["task_type"]),
        virtual_tokens=_number(value["virtual_tokens"]),
        invocation=tuple(map(_number, value["invocation"])),
        scalable=bool(value["scalable"]),
        warnings=tuple(map(_text, value["warnings"])),
        # Older files have none.
        words=tuple(map(_text, value.get("words", ()))),
    )


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedDocument(f"{str(value)[:40]!r} is not an object")
    return value


def _number(value: object) -> int:
    # SQLite stores no larger ones.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise DamagedDocument(f"{str(value)[:40]!r} is not a count")
    return value


def _scale(value: object) -> float:
    # NaN fails both comparisons.
    if not isinstance(value, int | float) or not -MAX_SCALE <= value <= MAX_SCALE:
        raise DamagedDocument(f"{str(value)[:40]!r} is not a scale")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise DamagedDocument(f"{str(value)[:40]!r} is not a string")
    return value
