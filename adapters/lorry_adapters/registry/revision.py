"""Makes the next record of an adapter from its last one. Pure: nothing is stored here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

from lorry_adapters.errors import (
    AdapterConflict,
    DigestMismatch,
    InvalidSelection,
    Problem,
    Remedy,
)
from lorry_adapters.lora.weights import AdapterFacts
from lorry_adapters.registry.catalog import StoredContent
from lorry_adapters.registry.names import check_strength
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from lorry_adapters.registry.retention import check_retention
from lorry_adapters.registry.version_rules import (
    Meaning,
    named_by,
    seen_as,
    with_aliases,
    with_split,
)

_Number = TypeVar("_Number", int, float)


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


def has_already(old: AdapterRecord, digest: str) -> bool:
    """Return whether the content is there, so that pushing it changes nothing."""
    return digest == old.current.digest or (
        bool(old.rules.split) and digest == old.versions[-1].digest
    )


def with_version(old: AdapterRecord, new: Staged, number: int) -> AdapterRecord:
    """Return `old` with `new` as version `number`; the state stays. It is current at once, unless
    the name is split: a trial goes on until it is ended."""
    now = datetime.now(UTC)
    version = _version(number, new, now)
    current = old.current if old.rules.split else version
    return replace(old, current=current, versions=(*old.versions, version), updated_at=now)


def without_versions(old: AdapterRecord, gone: Collection[VersionRecord]) -> AdapterRecord:
    """Return `old` without versions that no name means."""
    numbers = {version.version for version in gone}
    assert numbers.isdisjoint(named_by(old))
    rest = tuple(version for version in old.versions if version.version not in numbers)
    return replace(old, versions=rest, updated_at=datetime.now(UTC))


class Changes(TypedDict, total=False):
    """Changes of an adapter. What is None or absent stays."""

    enabled: bool | None
    scale: float | None
    pinned: bool | None
    description: str | None
    version: int | None
    """Makes a version current, and ends a split."""
    split: Mapping[int, int] | None
    """Weights by version; empty ends the split."""
    aliases: Mapping[str, Meaning | None] | None
    """By name; None removes an alias. The others stay."""
    keep_versions: int | Literal["default"] | None
    keep_days: float | Literal["default"] | None


def with_changes(old: AdapterRecord, changes: Changes, reserved: frozenset[str]) -> AdapterRecord:
    """Return `old` changed; equal to `old` if nothing changes. Raises UnknownAdapter,
    InvalidSelection, InvalidScale, InvalidAdapterName."""
    new = with_split(old, changes.get("split"), changes.get("version"))
    rules = with_aliases(new, changes.get("aliases") or {}, reserved)
    versions = _kept(rules.keep_versions, changes.get("keep_versions"))
    days = _kept(rules.keep_days, changes.get("keep_days"))
    check_retention(versions, days)
    new = replace(new, rules=replace(rules, keep_versions=versions, keep_days=days))
    new = with_state(
        new,
        changes.get("enabled"),
        changes.get("scale"),
        changes.get("pinned"),
        changes.get("description"),
        new.current,
    )
    named = named_by(new)
    for version in new.versions:
        if version.version in named:
            check_strength(new.name, version, new.scale)
    return old if new == old else replace(new, updated_at=datetime.now(UTC))


def of_alias(record: AdapterRecord, alias: str, changes: Changes) -> Changes:
    """Return the adapter's changes for changes of its alias: `version` or `split`. Raises
    InvalidSelection for others, which belong to the adapter."""
    version, split = changes.get("version"), changes.get("split")
    for name, value in changes.items():
        if value is not None and name not in ("version", "split"):
            raise InvalidSelection(
                f"{name} belongs to adapter {record.name!r}, of which {alias!r} is an alias; "
                "change it there",
                param=name,
            )
    if version is not None and split:
        text = f"alias {alias!r} means a version or a split; give one of them"
        raise InvalidSelection(text, param="split")
    if split is not None and not split:
        # The end of a trial.
        version = seen_as(record, alias).current.version
    meaning: Meaning | None = split or version
    return {} if meaning is None else {"aliases": {alias: meaning}}


def _kept(old: _Number | None, new: _Number | Literal["default"] | None) -> _Number | None:
    if new is None:
        return old
    return None if new == "default" else new


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


def check_unnamed(record: AdapterRecord, version: VersionRecord) -> None:
    """Raise AdapterConflict if a name means the version, so that it cannot be removed."""
    number = version.version
    if version == record.current:
        raise AdapterConflict(
            f"version {number} of adapter {record.name!r} is current; make another one current "
            "first, or remove the adapter",
            param="version",
        )
    if number in named_by(record):
        raise AdapterConflict(
            f"version {number} of adapter {record.name!r} is in a split or has an alias; end that "
            "first",
            param="version",
        )


def alias_alone(alias: str, adapter: str) -> AdapterConflict:
    """Return the error for what an alias has not: files and versions."""
    return AdapterConflict(
        f"{alias!r} is an alias of adapter {adapter!r}, which has the versions; name the adapter",
        param="name",
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
