"""A process that changes adapters, says what it does, and is killed in the middle of it."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from lorry_adapters.errors import AdapterConflict, UnknownAdapter
from lorry_adapters.registry import catalog
from lorry_adapters.registry.blobs import Blobs
from lorry_adapters.registry.cached_blobs import CachedBlobs
from lorry_adapters.registry.record import AdapterChoice
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, upload

NAMES = ("a", "b", "c")
SEEDS = 4


@dataclass(frozen=True)
class State:
    """Of one adapter."""

    versions: tuple[tuple[int, int], ...]
    """Numbers and seeds."""
    current: int
    last: int
    scale: float = 1.0
    enabled: bool = True


@dataclass(frozen=True)
class Change:
    what: str
    name: str
    number: int = 0
    """A seed, or a version."""
    scale: float = 1.0
    enabled: bool = True


States = Mapping[str, State]


def after(change: Change, states: States) -> States:
    """What there is once `change` has happened."""
    new, old = dict(states), states.get(change.name)
    if change.what == "add":
        if old is None:
            new[change.name] = State(((1, change.number),), 1, 1)
        elif dict(old.versions)[old.current] != change.number:
            number = old.last + 1
            versions = (*old.versions, (number, change.number))
            new[change.name] = replace(old, versions=versions, current=number, last=number)
    elif old is None:
        pass
    elif change.what == "patch":
        new[change.name] = replace(old, scale=change.scale, enabled=change.enabled)
    elif change.what == "remove":
        del new[change.name]
    elif change.number in dict(old.versions) and change.number != old.current:
        rest = tuple(one for one in old.versions if one[0] != change.number)
        new[change.name] = replace(old, versions=rest)
    return new


def seen(registry: Registry, digests: list[str], states: States) -> States:
    """What a registry has. Of the last numbers it tells nothing: they are those of `states`."""
    return {
        record.name: State(
            tuple((v.version, digests.index(v.digest)) for v in record.versions),
            record.current.version,
            states[record.name].last if record.name in states else record.current.version,
            record.scale,
            record.enabled,
        )
        for record in registry.records()
    }


def open_home(home: Path, store: Path | None = None) -> Registry:
    make_blobs: Callable[[Path], Blobs] = Blobs
    if store is not None:
        make_blobs = partial(
            CachedBlobs, url=f"file://{store}", max_content=1 << 20, max_bytes=None
        )
    return Registry(
        home,
        layout(),
        max_rank=4,
        max_upload=1 << 20,
        max_host_bytes=1 << 20,
        make_blobs=make_blobs,
    )


def drawn(random_: random.Random) -> Change:
    what = random_.choice(["add", "add", "add", "patch", "remove", "version"])
    number = random_.randrange(SEEDS) if what == "add" else random_.randrange(1, 5)
    scale, enabled = random_.choice([0.0, 0.25, 1.0, -3.5]), random_.random() < 0.7
    return Change(what, random_.choice(NAMES), number, scale, enabled)


def make(change: Change, registry: Registry, folders: list[Path]) -> None:
    known = {record.name: record for record in registry.records()}
    if change.what == "add":
        registry.add(change.name, upload(folders[change.number]), replace=True)
    elif change.name not in known:
        pass
    elif change.what == "patch":
        registry.patch(change.name, scale=change.scale, enabled=change.enabled)
    elif change.what == "remove":
        # Some are removed while they are in use, and never freed.
        if change.enabled and known[change.name].enabled:
            registry.acquire([AdapterChoice(change.name)])
        registry.remove(change.name)
    elif len(known[change.name].versions) > 1:
        # Not there, or current.
        with suppress(UnknownAdapter, AdapterConflict):
            registry.remove(change.name, version=change.number)


def run(
    home: Path,
    folders: list[Path],
    seed: int,
    die_at: int,
    told: Connection,
    store: Path | None = None,
) -> None:
    """Changes at random; SIGKILL before the `die_at`th call that writes, opening included, or in
    the middle of a file that goes into the store."""
    random_ = random.Random(seed)
    calls = 0

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def count_first(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return count_first

    for name in ("fsync", "rename", "unlink", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))

    put_file = LocalFileSystem.put_file

    def put_deadly(self: LocalFileSystem, path: str, to: str, **more: Any) -> None:
        nonlocal calls
        if calls + 2 >= die_at:
            data = Path(path).read_bytes()
            Path(to).parent.mkdir(parents=True, exist_ok=True)
            Path(to).write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 2
        put_file(self, path, to, **more)

    if store is not None:
        LocalFileSystem.put_file = put_deadly
        for name in ("pipe_file", "rm_file", "cat_file"):
            setattr(LocalFileSystem, name, deadly(getattr(LocalFileSystem, name)))

    class Deadly(sqlite3.Connection):
        execute = deadly(sqlite3.Connection.execute)

    connect = sqlite3.connect

    def deadly_connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        return connect(*args, factory=Deadly, **kwargs)

    catalog.sqlite3.connect = deadly_connect
    registry = open_home(home, store)
    for _ in range(1000):
        change = drawn(random_)
        told.send(change)
        make(change, registry, folders)
        told.send("done")
