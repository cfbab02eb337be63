"""The host cache against its documented rule, over any sequence of calls."""

from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lorry_adapters.registry.host_cache import HostCache

SIZES = {"a": 0, "b": 1, "c": 3, "d": 5, "e": 5, "f": 8, "g": 13}

digests = st.sampled_from(sorted(SIZES))


class CacheMachine(RuleBasedStateMachine):
    cache: HostCache

    @initialize(max_bytes=st.integers(0, 20), max_entries=st.one_of(st.none(), st.integers(0, 4)))
    def start(self, max_bytes: int, max_entries: int | None) -> None:
        self.max_bytes, self.max_entries = max_bytes, max_entries
        self.cache = HostCache(self.load, max_bytes=max_bytes, max_entries=max_entries)
        self.pinned: frozenset[str] = frozenset()
        self.loads = 0
        self.asked = 0
        self.failing = False

    def load(self, digest: str) -> Any:
        self.loads += 1
        if self.failing:
            raise OSError(digest)
        return SimpleNamespace(digest=digest, bytes=SIZES[digest])

    def kept(self) -> set[str]:
        return {digest for digest in SIZES if digest in self.cache}

    def fits(self, digests: set[str]) -> bool:
        size = sum(SIZES[digest] for digest in digests)
        return size <= self.max_bytes and (
            self.max_entries is None or len(digests) <= self.max_entries
        )

    @rule(digest=digests)
    def get(self, digest: str) -> None:
        before, loads = self.kept(), self.loads
        weights = self.cache.get(digest)
        self.asked += 1
        assert weights.digest == digest
        assert (self.loads == loads) == (digest in before)
        after = self.kept()
        assert after <= before | {digest}
        # Kept whenever the rule lets it be, and then nothing went that need not have.
        assert (digest in after) == (
            digest in before
            or digest in self.pinned
            or self.fits({digest} | (before & self.pinned))
        )
        if self.fits(before | {digest}):
            assert after == before | {digest}
        if digest not in after:
            assert after == before

    @rule(digest=digests)
    def fail(self, digest: str) -> None:
        before = self.kept()
        self.failing = True
        try:
            self.cache.get(digest)
            assert digest in before
        except OSError:
            assert digest not in before
        finally:
            self.failing = False
            self.asked += 1
        assert self.kept() == before

    @rule(pinned=st.frozensets(digests))
    def pin(self, pinned: frozenset[str]) -> None:
        before = self.kept()
        self.cache.pin(pinned)
        self.pinned = pinned
        assert before & pinned <= self.kept() <= before

    @rule(digest=digests)
    def discard(self, digest: str) -> None:
        before = self.kept()
        self.cache.discard(digest)
        assert self.kept() == before - {digest}

    @invariant()
    def within_the_budget_but_for_the_pinned(self) -> None:
        if not hasattr(self, "cache"):
            return
        kept = self.kept()
        assert self.fits(kept) or kept <= self.pinned
        stats = self.cache.stats()
        assert stats.bytes == sum(SIZES[digest] for digest in kept)
        assert stats.entries == len(kept)
        assert stats.hits + stats.misses == self.asked
        assert stats.misses == self.loads


TestHostCache = CacheMachine.TestCase
TestHostCache.settings = settings(max_examples=150, stateful_step_count=40)
