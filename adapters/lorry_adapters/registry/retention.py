"""Which versions of an adapter are no longer kept. Pure.

For trainers that push a version at every step: an adapter, or the server for all adapters, has a
number of versions and an age. A version beyond either goes, unless a name means it or a lease holds
it. The two newest versions stay in any case: a request that is being prepared may have chosen the
one that was current a moment ago.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from lorry_adapters.errors import InvalidSelection
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from lorry_adapters.registry.version_rules import named_by

LEAST: Final = 2
"""The fewest versions that are kept."""
MOST: Final = 1_000_000
MOST_DAYS: Final = 36_500.0


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of an adapter that says nothing else. 0: everything."""

    versions: int = 0
    days: float = 0.0


def check_retention(keep_versions: int | None, keep_days: float | None) -> None:
    """Raise InvalidSelection for numbers that mean nothing."""
    if keep_versions not in (None, 0) and not LEAST <= keep_versions <= MOST:
        text = f"keep_versions must be 0 (all) or a whole number from {LEAST} to {MOST}"
        raise InvalidSelection(text, param="keep_versions")
    # NaN fails the comparison.
    if keep_days is not None and not 0 <= keep_days <= MOST_DAYS:
        text = f"keep_days must be a number from 0 (for ever) to {MOST_DAYS:g}"
        raise InvalidSelection(text, param="keep_days")


def expired(
    record: AdapterRecord,
    default: Retention,
    now: datetime,
    held: Callable[[Iterable[str]], frozenset[str]],
) -> tuple[VersionRecord, ...]:
    """Return the versions to remove. `held(digests)` returns those that leases hold, on any server
    that shares the catalog."""
    rules = record.rules
    count = default.versions if rules.keep_versions is None else rules.keep_versions
    days = default.days if rules.keep_days is None else rules.keep_days
    old = record.versions[:-LEAST]
    if not (count or days) or not old:
        return ()
    kept = record.versions[-count:] if count else record.versions
    newest = {version.version for version in kept}
    limit = now - timedelta(days=days) if days else None
    named = named_by(record)
    gone = [
        version
        for version in old
        if (version.version not in newest or (limit is not None and version.created_at < limit))
        and version.version not in named
    ]
    used = held({version.digest for version in gone}) if gone else frozenset()
    return tuple(version for version in gone if version.digest not in used)
