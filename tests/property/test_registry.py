"""The registry against a model of plain dictionaries, over any sequence of calls and restarts."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from lorry_adapters.errors import (
    AdapterConflict,
    AdapterDisabled,
    DigestMismatch,
    UnknownAdapter,
)
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.record import AdapterChoice, Lease
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload
from support.registries import DAMAGES

names = st.sampled_from(["a", "b"])
seeds = st.integers(0, 2)
scales = st.sampled_from([0.0, 0.5, -2.0, 16.0])
maybe = st.one_of(st.none(), st.booleans())


@dataclass
class Adapter:
    versions: dict[int, int]
    """Number -> seed of the content."""
    current: int
    last: int
    enabled: bool = True
    scale: float = 1.0
    pinned: bool = False


@dataclass(eq=False)
class Held:
    lease: Lease
    seed: int


class RegistryMachine(RuleBasedStateMachine):
    leases = Bundle("leases")

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.folders = [save_adapter(self.root / str(seed), seed) for seed in range(3)]
        self.digests = [digest_of(folder) for folder in self.folders]
        self.adapters: dict[str, Adapter] = {}
        self.held: list[Held] = []
        self.open()

    def open(self) -> None:
        self.gone: list[str] = []
        self.needed_before = self.needed()
        self.registry = Registry(
            self.root / "home", layout(), max_rank=4, max_upload=1 << 20, max_host_bytes=500
        )
        self.registry.subscribe(self.gone.append)

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            for held in self.held:
                held.lease.release()
            for name in list(self.adapters):
                self.registry.remove(name)
            assert list((self.root / "home" / "blobs").iterdir()) == []
            assert self.registry.host_cache_stats().entries == 0
            self.registry.close()
            assert list((self.root / "home" / "staging").iterdir()) == []
            shutil.rmtree(self.root)

    @rule(name=names, seed=seeds, scale=st.one_of(st.none(), scales), enabled=maybe, pinned=maybe,
          replace=st.booleans())  # fmt: skip
    def add(
        self,
        name: str,
        seed: int,
        scale: float | None,
        enabled: bool | None,
        pinned: bool | None,
        replace: bool,
    ) -> None:
        old = self.adapters.get(name)
        conflict = old is not None and old.versions[old.current] != seed and not replace
        try:
            record, created = self.registry.add(
                name,
                upload(self.folders[seed]),
                scale=scale,
                enabled=enabled,
                pinned=pinned,
                replace=replace,
            )
        except AdapterConflict:
            assert conflict
            return
        assert not conflict
        if old is not None and old.versions[old.current] == seed:
            assert not created
            return
        assert created
        if old is None:
            old = self.adapters[name] = Adapter({}, 0, 0)
        old.last += 1
        old.current = old.last
        old.versions[old.last] = seed
        old.scale = old.scale if scale is None else scale
        old.enabled = old.enabled if enabled is None else enabled
        old.pinned = old.pinned if pinned is None else pinned
        assert record.current.version == old.last

    @rule(name=names, seed=seeds, expected=st.one_of(st.none(), seeds))
    def put(self, name: str, seed: int, expected: int | None) -> None:
        old = self.adapters.get(name)
        if_match = None if expected is None else self.digests[expected]
        try:
            record = self.registry.put(name, upload(self.folders[seed]), if_match=if_match)
        except UnknownAdapter:
            assert old is None
            return
        except DigestMismatch:
            assert old is not None and old.versions[old.current] != expected
            return
        assert old is not None
        assert expected is None or old.versions[old.current] == expected
        if old.versions[old.current] != seed:
            old.last += 1
            old.current = old.last
            old.versions[old.last] = seed
        assert record.current.version == old.current

    @rule(name=names, enabled=maybe, scale=st.one_of(st.none(), scales), pinned=maybe,
          version=st.one_of(st.none(), st.integers(1, 4)))  # fmt: skip
    def patch(
        self,
        name: str,
        enabled: bool | None,
        scale: float | None,
        pinned: bool | None,
        version: int | None,
    ) -> None:
        old = self.adapters.get(name)
        try:
            self.registry.patch(name, enabled=enabled, scale=scale, pinned=pinned, version=version)
        except UnknownAdapter:
            assert old is None or version not in old.versions
            return
        assert old is not None
        old.enabled = old.enabled if enabled is None else enabled
        old.scale = old.scale if scale is None else scale
        old.pinned = old.pinned if pinned is None else pinned
        old.current = old.current if version is None else version

    @rule(name=names)
    def remove(self, name: str) -> None:
        try:
            self.registry.remove(name)
        except UnknownAdapter:
            assert name not in self.adapters
            return
        del self.adapters[name]

    @rule(name=names, version=st.integers(1, 4))
    def remove_version(self, name: str, version: int) -> None:
        old = self.adapters.get(name)
        try:
            self.registry.remove(name, version=version)
        except UnknownAdapter:
            assert old is None or version not in old.versions
            return
        except AdapterConflict:
            assert old is not None and old.current == version and len(old.versions) > 1
            return
        assert old is not None
        del old.versions[version]
        if not old.versions:
            del self.adapters[name]

    @rule(target=leases, name=names, version=st.one_of(st.none(), st.integers(1, 4)),
          scale=st.one_of(st.none(), scales))  # fmt: skip
    def acquire(self, name: str, version: int | None, scale: float | None) -> object:
        old = self.adapters.get(name)
        number = version or (old.current if old else 0)
        try:
            lease = self.registry.acquire([AdapterChoice(name, version, scale)])
        except UnknownAdapter:
            assert old is None or number not in old.versions
            return multiple()
        except AdapterDisabled:
            assert old is not None and not old.enabled
            return multiple()
        assert old is not None and old.enabled
        (ref,) = lease.refs
        assert (ref.name, ref.version) == (name, number)
        assert ref.scale == (old.scale if scale is None else scale)
        assert ref.digest == self.digests[old.versions[number]]
        held = Held(lease, old.versions[number])
        self.held.append(held)
        return held

    @rule(held=leases)
    def load(self, held: Held) -> None:
        if held in self.held:
            digest = self.digests[held.seed]
            assert self.registry.weights(digest).digest == digest

    @rule(held=consumes(leases))
    def release(self, held: Held) -> None:
        held.lease.release()
        if held in self.held:
            self.held.remove(held)

    @rule(damage=st.sampled_from([lambda catalog: None, *DAMAGES]))
    def restart(self, damage: Callable[[Path], None]) -> None:
        before = self.registry.records()
        self.registry.close()
        damage(self.root / "home" / "catalog.sqlite3")
        # Leases do not outlive the process; those of the old one come back late.
        late, self.held = self.held, []
        self.open()
        for held in late:
            held.lease.release()
        assert self.registry.records() == before
        assert self.registry.open_leases() == 0

    @invariant()
    def the_list_is_the_models(self) -> None:
        if not hasattr(self, "registry"):
            return
        listed = {
            record.name: Adapter(
                {v.version: self.digests.index(v.digest) for v in record.versions},
                record.current.version,
                self.adapters[record.name].last,
                record.enabled,
                record.scale,
                record.pinned,
            )
            for record in self.registry.records()
        }
        assert listed == self.adapters

    @invariant()
    def a_blob_for_whoever_needs_one_and_no_other(self) -> None:
        if not hasattr(self, "registry"):
            return
        needed = self.needed()
        stored = {path.name for path in (self.root / "home" / "blobs").iterdir()}
        assert stored == {self.digests[seed].replace(":", "-") for seed in needed}
        assert self.registry.open_leases() == len(self.held)

    @invariant()
    def the_host_holds_nothing_that_is_gone(self) -> None:
        if not hasattr(self, "registry"):
            return
        needed = self.needed()
        for seed, digest in enumerate(self.digests):
            assert seed in needed or not self.registry.in_host_cache(digest)

    @invariant()
    def subscribers_hear_of_each_end(self) -> None:
        if not hasattr(self, "registry"):
            return
        needed = self.needed()
        heard = {self.digests.index(digest) for digest in self.gone}
        self.gone.clear()
        assert self.needed_before - needed <= heard
        assert not heard & needed
        self.needed_before = needed

    def needed(self) -> set[int]:
        """Seeds of the contents that a version or a lease keeps."""
        owned = {seed for adapter in self.adapters.values() for seed in adapter.versions.values()}
        return owned | {held.seed for held in self.held}


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=25, stateful_step_count=25)
