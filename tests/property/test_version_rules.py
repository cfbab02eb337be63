"""Aliases, splits and retention against a model of plain dictionaries, over pushes, removals,
leases and restarts."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
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
    AdapterError,
    InvalidSelection,
    UnknownAdapter,
)
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.record import (
    AdapterChoice,
    AdapterRecord,
    Lease,
    Share,
)
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.retention import Retention
from lorry_adapters.registry.version_rules import main_of
from support.adapter_files import layout, save_adapter, upload
from support.registries import DAMAGES

SEEDS = 5
DEFAULT = 2
"""Versions that the server keeps."""

adapters = st.sampled_from(["a", "b"])
aliases = st.sampled_from(["prod", "a@prod", "b@prod", "a", "b"])
names = st.one_of(adapters, aliases)
numbers = st.integers(1, 6)
meanings = st.dictionaries(st.integers(0, 2), st.integers(1, 3), min_size=1, max_size=3)
"""Weights by how far a version is behind the last one."""


@dataclass
class Adapter:
    versions: dict[int, int] = field(default_factory=dict)
    """Number -> seed of the content."""
    current: int = 0
    last: int = 0
    split: dict[int, int] = field(default_factory=dict)
    aliases: dict[str, dict[int, int]] = field(default_factory=dict)
    keep: int | None = None

    def named(self) -> set[int]:
        return {self.current, *self.split, *(v for one in self.aliases.values() for v in one)}


class VersionMachine(RuleBasedStateMachine):
    leases = Bundle("leases")

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.folders = [save_adapter(self.root / str(seed), seed) for seed in range(SEEDS)]
        self.digests = [digest_of(folder) for folder in self.folders]
        self.model: dict[str, Adapter] = {}
        self.held: list[Lease] = []
        self.open()
        self.train("a", 0)

    def open(self) -> None:
        self.registry = Registry(
            self.root / "home",
            layout(),
            max_rank=4,
            max_upload=1 << 20,
            max_host_bytes=500,
            retention=Retention(versions=DEFAULT),
        )

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            for lease in self.held:
                lease.release()
            self.registry.close()
            shutil.rmtree(self.root)

    def owner(self, name: str) -> str | None:
        """The adapter that has a name or an alias."""
        found = (one for one, adapter in self.model.items() if name in adapter.aliases)
        return name if name in self.model else next(found, None)

    def retire(self, adapter: Adapter, new: int | None = None) -> None:
        """What a change of the adapter removes. `new`: the seed that is on its way in."""
        keep = DEFAULT if adapter.keep is None else adapter.keep
        if not keep:
            return
        held = {self.digests.index(ref.digest) for lease in self.held for ref in lease.refs}
        kept = {*sorted(adapter.versions)[-max(keep, 2) :], *adapter.named()}
        for version, seed in list(adapter.versions.items()):
            if version not in kept and seed not in held and seed != new:
                del adapter.versions[version]

    @rule(name=st.one_of(adapters, st.just("prod")), seed=st.integers(0, SEEDS - 1))
    def push(self, name: str, seed: int) -> None:
        taken = name not in self.model and self.owner(name) is not None
        try:
            record, created = self.registry.add(name, upload(self.folders[seed]), replace=True)
        except AdapterConflict:
            assert taken
            return
        assert not taken
        adapter = self.model.setdefault(name, Adapter())
        known = [adapter.versions.get(adapter.current)]
        if adapter.split:
            known.append(adapter.versions[max(adapter.versions)])
        assert created == (seed not in known)
        if not created:
            return
        adapter.last += 1
        adapter.versions[adapter.last] = seed
        adapter.current = adapter.current if adapter.split else adapter.last
        self.retire(adapter, seed)
        assert record.current.version == adapter.current

    @rule(name=adapters, seed=st.integers(0, SEEDS - 1))
    def train(self, name: str, seed: int) -> None:
        for step in range(3):
            self.push(name, (seed + step) % SEEDS)

    @rule(name=names, version=numbers)
    def promote(self, name: str, version: int) -> None:
        owner = self.owner(name)
        try:
            self.registry.patch(name, version=version)
        except UnknownAdapter:
            assert owner is None or version not in self.model[owner].versions
            return
        assert owner is not None
        adapter = self.model[owner]
        changes = adapter.current != version or bool(adapter.split)
        if name == owner:
            adapter.current, adapter.split = version, {}
        else:
            changes = adapter.aliases[name] != {version: 1}
            adapter.aliases[name] = {version: 1}
        if changes:
            self.retire(adapter)

    def versions_of(self, name: str | None, meaning: dict[int, int]) -> dict[int, int]:
        last = self.model[name].last if name in self.model else 9
        return {last - behind: weight for behind, weight in meaning.items()}

    @rule(name=names, meaning=meanings)
    def begin(self, name: str, meaning: dict[int, int]) -> None:
        owner = self.owner(name)
        split = self.versions_of(owner, meaning)
        try:
            before = self.registry.get(name)
            self.registry.patch(name, split=split)
        except UnknownAdapter:
            assert owner is None or not split.keys() <= self.model[owner].versions.keys()
            return
        assert owner is not None
        adapter = self.model[owner]
        if name == owner:
            shares = [Share(version, split[version]) for version in sorted(split)]
            adapter.current = main_of(shares, adapter.current)
            adapter.split = split if len(split) > 1 else {}
        else:
            adapter.aliases[name] = split
        if self.registry.get(owner) != before or name != owner:
            self.settle(adapter)

    @rule(name=names)
    def withdraw(self, name: str) -> None:
        owner = self.owner(name)
        try:
            self.registry.patch(name, split={})
        except UnknownAdapter:
            assert owner is None
            return
        assert owner is not None
        adapter = self.model[owner]
        if name == owner:
            adapter.split = {}
        else:
            shares = [Share(*one) for one in sorted(adapter.aliases[name].items())]
            adapter.aliases[name] = {main_of(shares, shares[0].version): 1}
        self.settle(adapter)

    def settle(self, adapter: Adapter) -> None:
        """A call that changed nothing removed nothing: make both do it."""
        self.registry.retire()
        for one in self.model.values():
            self.retire(one)

    @rule(name=adapters, alias=aliases, meaning=meanings)
    def alias(self, name: str, alias: str, meaning: dict[int, int]) -> None:
        if self.owner(name) not in (None, name):
            with pytest.raises(InvalidSelection):
                self.registry.patch(name, aliases={alias: 1})
            return
        adapter, owner = self.model.get(name), self.owner(alias)
        wanted = self.versions_of(name, meaning)
        try:
            self.registry.patch(name, aliases={alias: wanted})
        except AdapterConflict:
            assert owner is not None and (owner != name or alias == name)
            return
        except UnknownAdapter:
            if adapter is None:
                assert self.owner(name) is None
            else:
                assert not wanted.keys() <= adapter.versions.keys()
            return
        except AdapterError as error:
            assert "@" in alias and not alias.startswith(name), error
            return
        assert adapter is not None
        adapter.aliases[alias] = wanted
        self.settle(adapter)

    # Most rules need the other adapter.
    @rule(alias=st.sampled_from(["prod", "a@prod", "b@prod", "b"]))
    def remove_name(self, alias: str) -> None:
        owner = self.owner(alias)
        try:
            self.registry.remove(alias)
        except UnknownAdapter:
            assert owner is None
            return
        assert owner is not None
        if owner == alias:
            del self.model[alias]
        else:
            del self.model[owner].aliases[alias]
            self.settle(self.model[owner])

    @rule(name=adapters, version=numbers)
    def remove_version(self, name: str, version: int) -> None:
        if self.owner(name) not in (None, name):
            with pytest.raises(AdapterConflict):
                self.registry.remove(name, version=version)
            return
        adapter = self.model.get(name)
        try:
            self.registry.remove(name, version=version)
        except UnknownAdapter:
            assert adapter is None or version not in adapter.versions
            return
        except AdapterConflict:
            assert adapter is not None and version in adapter.named() and len(adapter.versions) > 1
            return
        assert adapter is not None
        del adapter.versions[version]
        if not adapter.versions:
            del self.model[name]
        else:
            self.settle(adapter)

    @rule(name=adapters, keep=st.sampled_from([0, 3, "default", 1]))
    def keep(self, name: str, keep: int | str) -> None:
        if self.owner(name) not in (None, name):
            with pytest.raises(InvalidSelection):
                self.registry.patch(name, keep_versions=keep)  # type: ignore[arg-type]
            return
        adapter = self.model.get(name)
        try:
            self.registry.patch(name, keep_versions=keep)  # type: ignore[arg-type]
        except UnknownAdapter:
            assert adapter is None
            return
        except InvalidSelection:
            assert keep == 1
            return
        assert adapter is not None
        adapter.keep = keep if isinstance(keep, int) else None
        self.settle(adapter)

    @rule(target=leases, name=names, key=st.sampled_from(["x", "y", "z"]))
    def acquire(self, name: str, key: str) -> object:
        owner = self.owner(name)
        choice = AdapterChoice(name, key=key)
        try:
            lease = self.registry.acquire([choice])
        except (UnknownAdapter, InvalidSelection):
            assert owner is None
            return multiple()
        assert owner is not None
        adapter = self.model[owner]
        meaning = (adapter.split if name == owner else adapter.aliases[name]) or [adapter.current]
        (ref,) = lease.refs
        assert ref.name == owner and ref.version in meaning
        assert ref.digest == self.digests[adapter.versions[ref.version]]
        assert self.registry.resolve(choice)[1].version == ref.version
        self.held.append(lease)
        return lease

    @rule(lease=consumes(leases))
    def release(self, lease: Lease) -> None:
        lease.release()
        if lease in self.held:
            self.held.remove(lease)

    @rule(damage=st.sampled_from([lambda catalog: None, *DAMAGES]))
    def restart(self, damage: Callable[[Path], None]) -> None:
        before = self.registry.records()
        self.registry.close()
        damage(self.root / "home" / "catalog.sqlite3")
        late, self.held = self.held, []
        self.open()
        for lease in late:
            lease.release()
        assert self.registry.records() == before

    @invariant()
    def the_list_is_the_models(self) -> None:
        if not hasattr(self, "registry"):
            return
        listed = {one.name: self.shown(one) for one in self.registry.records()}
        assert listed == self.model

    @invariant()
    def no_name_means_nothing(self) -> None:
        if not hasattr(self, "registry"):
            return
        for record in self.registry.records():
            there = {version.version for version in record.versions}
            for alias in record.rules.aliases:
                assert alias.shares and {share.version for share in alias.shares} <= there
                assert self.registry.get(alias.name).current.version in there
            split = {share.version for share in record.rules.split}
            assert split <= there and len(split) != 1
            assert not split or record.current.version in split

    @invariant()
    def a_blob_for_whoever_needs_one_and_no_other(self) -> None:
        if not hasattr(self, "registry"):
            return
        needed = {ref.digest for lease in self.held for ref in lease.refs}
        for adapter in self.model.values():
            needed |= {self.digests[seed] for seed in adapter.versions.values()}
        stored = {path.name for path in (self.root / "home" / "blobs").iterdir()}
        assert stored == {digest.replace(":", "-") for digest in needed}

    def shown(self, record: AdapterRecord) -> Adapter:
        rules = record.rules
        return Adapter(
            {one.version: self.digests.index(one.digest) for one in record.versions},
            record.current.version,
            self.model[record.name].last,
            {share.version: share.weight for share in rules.split},
            {one.name: {s.version: s.weight for s in one.shares} for one in rules.aliases},
            rules.keep_versions,
        )


TestVersions = VersionMachine.TestCase
TestVersions.settings = settings(max_examples=25, stateful_step_count=30)
