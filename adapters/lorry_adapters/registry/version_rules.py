"""What the names of an adapter mean: its aliases, its split, and how a version is drawn.

The rules of all names of an adapter are a part of its record, so a change of several names and of
the current version is one change. Pure: nothing is stored here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from lorry_adapters.errors import InvalidAdapterName, InvalidSelection, UnknownAdapter
from lorry_adapters.registry.names import MAX_NAME, check_name
from lorry_adapters.registry.record import (
    AdapterRecord,
    Alias,
    Share,
    VersionRecord,
    VersionRules,
)

MAX_ALIASES: Final = 100
"""Of one adapter."""
MAX_SHARES: Final = 16
"""Versions of a split."""
MAX_WEIGHT: Final = 1_000_000

LABEL: Final = re.compile(
    "[A-Za-z][A-Za-z0-9._/-]*|[0-9]+[A-Za-z._/-][A-Za-z0-9._/-]*",
)
"""What an alias such as `legal@prod` has behind the `@`. Digits alone are a version."""

Meaning = int | Mapping[int, int]
"""Of an alias: a version, or versions with their weights."""


def version_of(record: AdapterRecord, version: int | None) -> VersionRecord:
    """Return a version; None is the current one. Raises UnknownAdapter, whose message lists the
    versions."""
    if version is None:
        return record.current
    for candidate in record.versions:
        if candidate.version == version:
            return candidate
    known = [str(candidate.version) for candidate in record.versions]
    shown = ", ".join(known if len(known) <= 20 else ["...", *known[-20:]])
    raise UnknownAdapter(f"adapter {record.name!r} has no version {version}; it has {shown}")


def shares_of(record: AdapterRecord, name: str) -> tuple[Share, ...]:
    """Return what `name`, the record's own or an alias, means; empty for the current version."""
    if name == record.name:
        return record.rules.split
    return next(alias.shares for alias in record.rules.aliases if alias.name == name)


def seen_as(record: AdapterRecord, name: str) -> AdapterRecord:
    """Return the record as `name`, its own or an alias, means it: the alias's version is the
    current one, and its split the record's."""
    if name == record.name:
        return record
    shares = shares_of(record, name)
    current = version_of(record, main_of(shares, shares[0].version))
    split = shares if len(shares) > 1 else ()
    return replace(record, current=current, rules=replace(record.rules, split=split))


def named_by(record: AdapterRecord) -> frozenset[int]:
    """Return the versions that are current, in the split or behind an alias."""
    shares = [*record.rules.split, *(s for alias in record.rules.aliases for s in alias.shares)]
    return frozenset({record.current.version, *(share.version for share in shares)})


def main_digests(record: AdapterRecord) -> frozenset[str]:
    """Return the digests that the adapter's own name means."""
    numbers = {record.current.version, *(share.version for share in record.rules.split)}
    return frozenset(v.digest for v in record.versions if v.version in numbers)


def main_of(shares: Sequence[Share], preferred: int) -> int:
    """Return the version with the largest weight; among equals `preferred`, or the oldest."""
    return max(shares, key=lambda s: (s.weight, s.version == preferred, -s.version)).version


def drawn(record: AdapterRecord, shares: Sequence[Share], key: str) -> int:
    """Return the version that requests with `key` get.

    Weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): each version draws
    -weight / ln(u) with u from the hash of adapter, key and version, and the largest wins. Each
    wins in proportion to its weight, and a change of weights moves no more keys than it must.
    """
    if len(shares) == 1:
        return shares[0].version

    def score(share: Share) -> float:
        text = f"{record.name}\0{key}\0{share.version}"
        bits = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8])
        return -share.weight / math.log((bits + 1) / (2**64 + 2))

    return max(shares, key=score).version


def shares_from(record: AdapterRecord, meaning: Meaning, param: str) -> tuple[Share, ...]:
    """Return shares by version. Raises InvalidSelection, and UnknownAdapter for a version that
    there is not."""
    if isinstance(meaning, int):
        meaning = {meaning: 1}
    if not 1 <= len(meaning) <= MAX_SHARES:
        text = f"{param} has {len(meaning)} versions; from 1 to {MAX_SHARES} are possible"
        raise InvalidSelection(text, param=param)
    for version, weight in meaning.items():
        version_of(record, version)
        if isinstance(weight, bool) or not 1 <= weight <= MAX_WEIGHT:
            raise InvalidSelection(
                f"the weight of version {version} must be a whole number from 1 to {MAX_WEIGHT}; "
                "leave a version out that is to get no requests",
                param=param,
            )
    return tuple(Share(version, meaning[version]) for version in sorted(meaning))


def with_aliases(
    old: AdapterRecord, changes: Mapping[str, Meaning | None], reserved: frozenset[str]
) -> VersionRules:
    """Return the rules with some aliases set or, for None, removed. Raises InvalidAdapterName,
    InvalidSelection, UnknownAdapter."""
    aliases = {alias.name: alias for alias in old.rules.aliases}
    for name, meaning in changes.items():
        if meaning is None:
            if aliases.pop(name, None) is None:
                text = f"adapter {old.name!r} has no alias {name[:MAX_NAME]!r}"
                raise UnknownAdapter(text, param="aliases")
        else:
            _check_alias(name, old.name, reserved)
            aliases[name] = Alias(name, shares_from(old, meaning, "aliases"))
    if len(aliases) > MAX_ALIASES:
        text = f"adapter {old.name!r} would have {len(aliases)} aliases; at most {MAX_ALIASES}"
        raise InvalidSelection(text, param="aliases")
    return replace(old.rules, aliases=tuple(aliases[name] for name in sorted(aliases)))


def with_split(
    old: AdapterRecord, split: Mapping[int, int] | None, version: int | None
) -> AdapterRecord:
    """Return `old` with its name's meaning changed; None keeps a part of it.

    A version alone becomes current and ends the split; an empty split ends it, too. Of a split,
    `version` or else the one with the largest weight becomes current. Raises InvalidSelection,
    UnknownAdapter.
    """
    current = version_of(old, version)
    if split is None:
        shares = old.rules.split if version is None else ()
    else:
        shares = shares_from(old, split, "split") if split else ()
    if split and version is None:
        current = version_of(old, main_of(shares, old.current.version))
    if shares and current.version not in {share.version for share in shares}:
        raise InvalidSelection(
            f"version {current.version} is not in the split; make one current that is",
            param="split",
        )
    rules = replace(old.rules, split=shares if len(shares) > 1 else ())
    return replace(old, current=current, rules=rules)


def rules_value(rules: VersionRules) -> dict[str, Any]:
    """Return the rules for storage, as JSON."""
    return {
        "aliases": {alias.name: _value(alias.shares) for alias in rules.aliases},
        "split": _value(rules.split),
        "keep_versions": rules.keep_versions,
        "keep_days": rules.keep_days,
    }


def rules_from(value: Any) -> VersionRules:
    """Read what `rules_value` returned. Raises ValueError, KeyError, TypeError or
    AttributeError."""
    keep, days = value["keep_versions"], value["keep_days"]
    return VersionRules(
        tuple(
            Alias(str(name), _shares(value["aliases"][name])) for name in sorted(value["aliases"])
        ),
        _shares(value["split"]),
        None if keep is None else int(keep),
        None if days is None else float(days),
    )


def check_rules(record: AdapterRecord) -> None:
    """Raise ValueError if a name means a version that there is not."""
    lost = named_by(record) - {version.version for version in record.versions}
    if lost or not all(alias.shares for alias in record.rules.aliases):
        raise ValueError(f"names of {record.name!r} mean versions {sorted(lost)}, which are gone")


def _value(shares: Sequence[Share]) -> dict[str, int]:
    return {str(share.version): share.weight for share in shares}


def _shares(value: Mapping[str, int]) -> tuple[Share, ...]:
    return tuple(Share(int(version), int(value[version])) for version in sorted(value, key=int))


def _check_alias(alias: str, adapter: str, reserved: frozenset[str]) -> None:
    name, at, label = alias.partition("@")
    if not at:
        check_name(alias, reserved)
    elif name != adapter or len(alias) > MAX_NAME or LABEL.fullmatch(label) is None:
        raise InvalidAdapterName(
            f"{alias[:140]!r} is no alias of {adapter!r}: with an '@' it must be {adapter}@LABEL, "
            "where LABEL has letters, digits, '.', '_', '-' and '/', and not digits alone",
            param="aliases",
        )
