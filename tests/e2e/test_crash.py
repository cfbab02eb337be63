"""Short forms of `make crash`: real servers, killed at random moments while clients change
everything. A failure says its seed: `python -m support.crashes --seed`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.crashes import Scene, crash
from support.postgres import Postgres
from support.shared_crashes import company, crash_in_turn

SEED = 1


@pytest.fixture
def quick() -> Iterator[Path]:
    """In memory where that can be: the system outlives a process, so a disk adds only time."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.made(tmp_path_factory.mktemp("scene"))


def test_a_server_that_is_killed_keeps_what_it_told(scene: Scene, quick: Path) -> None:
    crash(scene, quick, SEED, 6)


def test_each_part_of_two_servers_is_killed(
    scene: Scene, quick: Path, catalog_url: str, postgres: Postgres
) -> None:
    with company(scene, quick, catalog_url, postgres) as parts:
        crash_in_turn(scene, parts, SEED, 4)
