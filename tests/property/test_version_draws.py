"""Which version a split gives to a key, and which versions a rule lets go."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from lorry_adapters.registry.record import Alias, Share, VersionRules
from lorry_adapters.registry.retention import Retention, expired
from lorry_adapters.registry.version_rules import drawn
from support.version_records import record_of

numbers = st.integers(1, 6)


@given(st.dictionaries(numbers, st.integers(1, 9), min_size=2, max_size=4))
@settings(max_examples=10)
def test_each_version_gets_its_share_and_a_key_stays(meaning: dict[int, int]) -> None:
    record = record_of(8)
    shares = [Share(version, weight) for version, weight in meaning.items()]
    keys = [str(index) for index in range(2000)]
    first = {key: drawn(record, shares, key) for key in keys}
    total = sum(meaning.values())
    for version, weight in meaning.items():
        expected = len(keys) * weight / total
        counted = sum(one == version for one in first.values())
        # Six standard deviations.
        assert abs(counted - expected) < 6 * (expected * (1 - weight / total)) ** 0.5 + 1
    # More for one version takes keys from the others and moves none between those.
    favoured, *_ = meaning
    more = [Share(v, w * 3 if v == favoured else w) for v, w in meaning.items()]
    for key, version in first.items():
        assert drawn(record, more, key) in (version, favoured)


def test_retention_leaves_what_a_name_means() -> None:
    now = datetime.now(UTC)
    record = record_of(9)
    rules = VersionRules(
        aliases=(Alias("prod", (Share(1, 1),)), Alias("next", (Share(2, 1), Share(4, 1)))),
        split=(Share(5, 9), Share(9, 1)),
    )
    record = replace(record, rules=rules)
    for default in (Retention(versions=2), Retention(days=1)):
        gone = expired(record, default, now, lambda digests: frozenset())
        assert [version.version for version in gone] == [3, 6, 7]
    own = replace(record, rules=replace(rules, keep_versions=0))
    assert expired(own, Retention(versions=2), now, lambda digests: frozenset()) == ()


def test_retention_counts_days_from_a_version_s_creation() -> None:
    now = datetime.now(UTC)
    record = record_of(6, made=lambda number: now - timedelta(days=10 - number))
    gone = expired(record, Retention(days=6.5), now, lambda digests: frozenset())
    assert [version.version for version in gone] == [1, 2, 3]
    two = expired(record, Retention(days=0.1), now, lambda digests: frozenset())
    assert [version.version for version in two] == [1, 2, 3, 4]
    none = expired(record, Retention(days=0.1), now, frozenset)
    assert none == ()
