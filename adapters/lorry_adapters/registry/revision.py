"""Makes the next record of an adapter from its last one. Pure: nothing is stored here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lorry_adapters.errors import AdapterConflict, DigestMismatch, Problem, Remedy
from lorry_adapters.lora.weights import AdapterFacts
from lorry_adapters.registry.catalog import StoredContent
from lorry_adapters.registry.names import check_strength
from lorry_adapters.registry.record import AdapterRecord, VersionRecord


@dataclass(frozen=True, slots=True)
class Staged:
    """An upload that passed every check and is synced in staging."""

    folder: Path
    digest: str
    facts: AdapterFacts
    words: tuple[str, ...]
    """The words that it brings: `lora.words.Words.brings`."""
    stored: StoredContent


def first_record(name: str, new: Staged) -> AdapterRecord:
    now = datetime.now(UTC)
    version = _version(1, new, now)
    return AdapterRecord(
        name=name,
        enabled=True,
        scale=1.0,
        pinned=False,
        description="",
        current=version,
        versions=(version,),
        created_at=now,
        updated_at=now,
    )


def with_version(old: AdapterRecord, new: Staged, number: int) -> AdapterRecord:
    """Return `old` with `new` as version `number`, current at once; the state stays."""
    now = datetime.now(UTC)
    version = _version(number, new, now)
    return replace(old, current=version, versions=(*old.versions, version), updated_at=now)


def without_version(old: AdapterRecord, gone: VersionRecord) -> AdapterRecord:
    """Return `old` without version `gone`, which must not be the current one."""
    assert gone != old.current
    rest = tuple(version for version in old.versions if version != gone)
    return replace(old, versions=rest, updated_at=datetime.now(UTC))


def with_state(
    old: AdapterRecord,
    enabled: bool | None,
    scale: float | None,
    pinned: bool | None,
    description: str | None,
    current: VersionRecord,
) -> AdapterRecord:
    """Return `old` with whatever is not None; equal to `old` if nothing changes. Raises
    InvalidScale if the current version cannot be used at the resulting scale."""
    new = replace(
        old,
        enabled=old.enabled if enabled is None else enabled,
        scale=old.scale if scale is None else scale,
        pinned=old.pinned if pinned is None else pinned,
        description=old.description if description is None else description,
        current=current,
    )
    check_strength(new.name, new.current, new.scale)
    return old if new == old else replace(new, updated_at=datetime.now(UTC))


def check_match(record: AdapterRecord, if_match: str | None) -> None:
    """Raise DigestMismatch unless `if_match` is None or the current digest."""
    if if_match is not None and if_match != record.current.digest:
        raise DigestMismatch(
            f"adapter {record.name!r} is now at version {record.current.version} with digest "
            f"{record.current.digest}, not {if_match[:80]}; look at it again before changing it"
        )


def conflict(record: AdapterRecord, digest: str) -> AdapterConflict:
    """Return the error for other content under an existing name."""
    for version in record.versions:
        if version.digest == digest:
            return AdapterConflict(
                f"adapter {record.name!r} has this content as version {version.version}, "
                f"but version {record.current.version} is current; go back to it, or replace"
            )
    return AdapterConflict(
        Problem(
            f"adapter {record.name!r} exists with other content ({record.current.digest})",
            Remedy.REPLACE,
        )
    )


def _version(number: int, new: Staged, now: datetime) -> VersionRecord:
    return VersionRecord(
        version=number,
        digest=new.digest,
        peft_type=new.facts.peft_type,
        rank=new.facts.rank,
        target_modules=new.facts.target_modules,
        parameters=new.facts.parameters,
        bytes=new.facts.bytes,
        base_model=new.facts.base_model,
        created_at=now,
        task_type=new.facts.task_type,
        virtual_tokens=new.facts.virtual_tokens,
        invocation=new.facts.invocation,
        scalable=new.facts.scalable,
        warnings=new.facts.warnings,
        words=new.words,
    )
