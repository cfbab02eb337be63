"""Killed at any moment, again and again, the catalog damaged in between: nothing is lost."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.record import AdapterChoice
from support import killed
from support.adapter_files import save_adapter
from support.killed import Change, States
from support.patience import wait_until
from support.registries import DAMAGES, left_in_store

LIVES = 40


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In memory where that can be: the system outlives the process, so a disk adds only time."""
    # The server that processes fork from imports what they need, once, if it finds it.
    monkeypatch.setenv("PYTHONPATH", str(Path(killed.__file__).resolve().parents[1]))
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else tmp_path))
    yield folder
    shutil.rmtree(folder)


def one_life(
    home: Path, folders: list[Path], seed: int, die_at: int, store: Path | None = None
) -> list[Change | str]:
    """What a process told before it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.killed"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=killed.run, args=(home, folders, seed, die_at, theirs, store))
    process.start()
    theirs.close()
    told: list[Change | str] = []
    try:
        while True:
            told.append(ours.recv())
    except EOFError:
        process.join()
    assert process.exitcode == -9, process.exitcode
    return told


def possible(told: list[Change | str], states: States) -> list[States]:
    """What may be there now; of two the second has the change that nobody heard the end of."""
    before = states
    for one in told:
        if isinstance(one, Change):
            before, states = states, killed.after(one, states)
        else:
            before = states
    return [before, states]


@pytest.mark.parametrize("seed", [1, 2])
def test_no_adapter_is_lost_and_none_comes_back(quick: Path, seed: int) -> None:
    folders = [save_adapter(quick / str(number), number) for number in range(killed.SEEDS)]
    digests = [digest_of(folder) for folder in folders]
    home = quick / "home"
    random_ = random.Random(seed)
    states: States = {}
    changes = unheard = 0
    damages: list[Callable[[Path], None] | None] = [None, *DAMAGES]
    for life in range(LIVES):
        die_at = random_.choice([random_.randrange(1, 60), random_.randrange(60, 400)])
        told = one_life(home, folders, seed * 1000 + life, die_at)
        expected = possible(told, states)
        changes += told.count("done")
        unheard += bool(told) and told[-1] != "done"
        damage = random_.choice(damages)
        if damage is not None:
            damage(home / "catalog.sqlite3")
        registry = killed.open_home(home)
        found = {}
        for states in expected:
            found = killed.seen(registry, digests, states)
            if found == states:
                break
        else:
            raise AssertionError((life, damage, told[-3:], found, expected))
        for record in registry.records():
            for version in record.versions:
                assert registry.why_broken(version.digest) is None, (life, record)
            if record.enabled:
                lease = registry.acquire([AdapterChoice(record.name)])
                registry.weights(lease.refs[0].digest)
                lease.release()
        registry.close()
    assert changes > LIVES
    assert unheard > LIVES / 4


def test_nothing_half_is_served_from_a_store(quick: Path) -> None:
    """Killed while contents go into the store, come from it and leave it. What is left is loaded
    from the store alone."""
    folders = [save_adapter(quick / str(number), number) for number in range(killed.SEEDS)]
    digests = [digest_of(folder) for folder in folders]
    home, store = quick / "home", quick / "store"
    random_ = random.Random(3)
    states: States = {}
    for life in range(LIVES):
        die_at = random_.choice([random_.randrange(10, 80), random_.randrange(80, 400)])
        told = one_life(home, folders, 3000 + life, die_at, store)
        shutil.rmtree(home / "blobs", ignore_errors=True)
        registry = killed.open_home(home, store)
        expected, found = possible(told, states), {}
        for states in expected:
            found = killed.seen(registry, digests, states)
            if found == states:
                break
        else:
            raise AssertionError((life, told[-3:], found))
        owned = {version.digest for one in registry.records() for version in one.versions}
        for record in registry.records():
            if record.enabled:
                lease = registry.acquire([AdapterChoice(record.name)])
                registry.weights(lease.refs[0].digest)
                lease.release()
        wait_until(
            lambda owned=owned: left_in_store(store) == owned,
            "the store to have what there is and no more",
        )
        registry.close()
