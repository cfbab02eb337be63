"""Two registries over one catalog and one store, against a model of plain dictionaries: versions,
aliases, splits and leases.

Any sequence of calls at either, with restarts and cut connections. After each step both know what
the model knows, once they have looked.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lorry_adapters.errors import (
    AdapterConflict,
    CatalogUnavailable,
    DigestMismatch,
    InvalidSelection,
    UnknownAdapter,
)
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.cached_blobs import CachedBlobs
from lorry_adapters.registry.object_store import COMPLETE
from lorry_adapters.registry.record import AdapterChoice, Lease
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload
from support.patience import wait_until
from support.postgres import Postgres

servers = st.integers(0, 1)
names = st.sampled_from(["a", "b"])
seeds = st.integers(0, 2)


@dataclass
class Adapter:
    versions: dict[int, int]
    """Number -> seed of the content."""
    current: int
    last: int
    enabled: bool = True
    scale: float = 1.0
    split: dict[int, int] = field(default_factory=dict)
    alias: dict[int, int] = field(default_factory=dict)
    """What `NAME@prod` means, by version; empty: there is none."""

    def pushed(self, seed: int) -> bool:
        """Whether a push adds a version; during a trial it is not current."""
        known = [self.versions.get(self.current)]
        if self.split:
            known.append(self.versions[max(self.versions)])
        if seed in known:
            return False
        self.last += 1
        self.versions[self.last] = seed
        self.current = self.current if self.split else self.last
        return True


@dataclass(eq=False)
class Held:
    at: int
    seed: int
    lease: Lease


class SharedMachine(RuleBasedStateMachine):
    url: str

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.folders = [save_adapter(self.root / str(seed), seed) for seed in range(3)]
        self.digests = [digest_of(folder) for folder in self.folders]
        self.adapters: dict[str, Adapter] = {}
        self.held: list[Held] = []
        with psycopg.connect(self.url) as admin:
            admin.execute("DROP SCHEMA public CASCADE")
            admin.execute("CREATE SCHEMA public")
        self.registries = [self.opened(0), self.opened(1)]

    def opened(self, at: int) -> Registry:
        return Registry(
            self.root / f"home{at}",
            layout(),
            max_rank=4,
            max_upload=1 << 20,
            max_host_bytes=500,
            catalog=self.url,
            make_blobs=partial(
                CachedBlobs,
                url=f"file://{self.root}/bucket",
                max_content=1 << 20,
                max_bytes=None,
            ),
        )

    def teardown(self) -> None:
        if hasattr(self, "registries"):
            for held in self.held:
                held.lease.release()
            for registry in self.registries:
                registry.close()
            shutil.rmtree(self.root)

    @rule(at=servers, name=names, seed=seeds, replace=st.booleans())
    def add(self, at: int, name: str, seed: int, replace: bool) -> None:
        old = self.adapters.get(name)
        try:
            record, created = self.registries[at].add(
                name, upload(self.folders[seed]), replace=replace
            )
        except AdapterConflict:
            assert old is not None and old.versions[old.current] != seed and not replace
            return
        adapter = self.adapters.setdefault(name, Adapter({}, 0, 0))
        assert created == adapter.pushed(seed)
        assert not created or old is None or replace
        assert record.current.version == adapter.current

    @rule(at=servers, name=names, seed=seeds, expected=seeds)
    def put(self, at: int, name: str, seed: int, expected: int) -> None:
        old = self.adapters.get(name)
        try:
            self.registries[at].put(
                name, upload(self.folders[seed]), if_match=self.digests[expected]
            )
        except UnknownAdapter:
            # It may look before it knows: that is what other servers would say, too.
            return
        except DigestMismatch:
            return
        assert old is not None and old.versions[old.current] == expected
        old.pushed(seed)

    @rule(at=servers, name=names, enabled=st.booleans(), scale=st.sampled_from([0.5, 2.0]))
    def patch(self, at: int, name: str, enabled: bool, scale: float) -> None:
        old = self.adapters.get(name)
        try:
            self.registries[at].patch(name, enabled=enabled, scale=scale)
        except UnknownAdapter:
            assert old is None
            return
        assert old is not None
        old.enabled, old.scale = enabled, scale

    @rule(at=servers, name=names, version=st.integers(1, 4))
    def roll(self, at: int, name: str, version: int) -> None:
        old = self.adapters.get(name)
        try:
            self.registries[at].patch(name, version=version)
        except UnknownAdapter:
            assert old is None or version not in old.versions
            return
        assert old is not None
        old.current, old.split = version, {}

    @rule(at=servers, name=names, weights=st.tuples(st.integers(1, 3), st.integers(1, 3)))
    def begin(self, at: int, name: str, weights: tuple[int, int]) -> None:
        """A trial of the two newest versions."""
        old = self.adapters.get(name)
        if old is None or len(old.versions) < 2:
            return
        split = dict(zip(sorted(old.versions)[-2:], weights, strict=True))
        self.registries[at].patch(name, split=split)
        current = max(split, key=lambda v: (split[v], v == old.current, -v))
        old.current, old.split = current, split

    @rule(at=servers, name=names)
    def withdraw(self, at: int, name: str) -> None:
        if name in self.adapters:
            self.registries[at].patch(name, split={})
            self.adapters[name].split = {}

    @rule(at=servers, name=names, behind=st.integers(0, 2), both=st.booleans())
    def alias(self, at: int, name: str, behind: int, both: bool) -> None:
        old = self.adapters.get(name)
        if old is None:
            return
        known = sorted(old.versions)
        meaning = {known[-1 - behind % len(known)]: 1} | ({known[-1]: 1} if both else {})
        self.registries[at].patch(name, aliases={f"{name}@prod": meaning})
        old.alias = meaning

    @rule(at=servers, name=names)
    def drop_alias(self, at: int, name: str) -> None:
        old = self.adapters.get(name)
        try:
            self.registries[at].remove(f"{name}@prod")
        except (UnknownAdapter, InvalidSelection):
            assert old is None or not old.alias
            return
        assert old is not None and old.alias
        old.alias = {}

    @rule(at=servers, name=names)
    def remove(self, at: int, name: str) -> None:
        try:
            self.registries[at].remove(name)
        except UnknownAdapter:
            assert name not in self.adapters
            return
        del self.adapters[name]

    @rule(at=servers, name=names, version=st.integers(1, 4))
    def remove_version(self, at: int, name: str, version: int) -> None:
        old = self.adapters.get(name)
        try:
            self.registries[at].remove(name, version=version)
        except UnknownAdapter:
            assert old is None or version not in old.versions
            return
        except AdapterConflict:
            assert old is not None and len(old.versions) > 1
            assert version in {old.current, *old.split, *old.alias}
            return
        assert old is not None
        del old.versions[version]
        if not old.versions:
            del self.adapters[name]

    @rule(at=servers, name=names, by_alias=st.booleans(), key=st.sampled_from("xyz"))
    def acquire(self, at: int, name: str, by_alias: bool, key: str) -> None:
        self.both_know()
        adapter = self.adapters.get(name)
        if adapter is not None and adapter.enabled and (adapter.alias or not by_alias):
            choice = AdapterChoice(f"{name}@prod" if by_alias else name, key=key)
            lease = self.registries[at].acquire([choice])
            (ref,) = lease.refs
            meaning = adapter.alias if by_alias else adapter.split or [adapter.current]
            seed = adapter.versions[ref.version]
            assert ref.version in meaning and ref.digest == self.digests[seed]
            assert ref.name == name and ref.scale == adapter.scale
            # The other server draws the same.
            assert self.registries[1 - at].resolve(choice)[1].version == ref.version
            self.held.append(Held(at, seed, lease))

    @rule(which=st.integers(0, 9))
    def load(self, which: int) -> None:
        if which < len(self.held):
            held = self.held[which]
            digest = self.digests[held.seed]
            assert self.registries[held.at].weights(digest).digest == digest

    @rule(which=st.integers(0, 9))
    def release(self, which: int) -> None:
        if which < len(self.held):
            self.held.pop(which).lease.release()

    @rule(at=servers)
    def restart(self, at: int) -> None:
        for held in [held for held in self.held if held.at == at]:
            held.lease.release()
            self.held.remove(held)
        self.registries[at].close()
        self.registries[at] = self.opened(at)

    @rule()
    def cut(self) -> None:
        """Every connection ends; a change finds a broken one at most once."""
        with psycopg.connect(self.url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        for registry in self.registries:
            try:
                with registry.storage.changing():
                    pass
            except CatalogUnavailable:
                with registry.storage.changing():
                    pass

    @invariant()
    def both_know(self) -> None:
        if not hasattr(self, "registries"):
            return
        for registry in self.registries:
            wait_until(
                lambda registry=registry: self.listed(registry) == self.expected(),
                "what the model knows",
            )

    @invariant()
    def the_store_has_what_is_named(self) -> None:
        if not hasattr(self, "registries"):
            return
        bucket = self.root / "bucket"
        complete = {path.parent.name.replace("-", ":") for path in bucket.glob("*/" + COMPLETE)}
        named = {seed for adapter in self.adapters.values() for seed in adapter.versions.values()}
        assert {self.digests[seed] for seed in named} <= complete

    @invariant()
    def nothing_is_broken(self) -> None:
        if hasattr(self, "registries"):
            for registry in self.registries:
                for digest in self.digests:
                    assert registry.why_broken(digest) is None

    def listed(self, registry: Registry) -> dict[str, object]:
        return {
            record.name: (
                {v.version: self.digests.index(v.digest) for v in record.versions},
                record.current.version,
                record.enabled,
                record.scale,
                {share.version: share.weight for share in record.rules.split},
                {s.version: s.weight for one in record.rules.aliases for s in one.shares},
            )
            for record in registry.records()
        }

    def expected(self) -> dict[str, object]:
        return {
            name: (one.versions, one.current, one.enabled, one.scale, one.split, one.alias)
            for name, one in self.adapters.items()
        }


@pytest.fixture(scope="module")
def machine_url(postgres: Postgres) -> object:
    with postgres.database() as url:
        SharedMachine.url = url
        yield url


@pytest.mark.usefixtures("machine_url")
class TestSharedRegistry(SharedMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(
        max_examples=10, stateful_step_count=20, suppress_health_check=list(HealthCheck)
    )
