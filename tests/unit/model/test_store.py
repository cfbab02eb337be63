"""The model cache: complete or absent, whoever starts at once, and clear words when it cannot."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from lorry.errors import ModelError
from lorry.model.store import build_once, require_room, sha256_of, source_of
from support.patience import PATIENCE

RACERS = 4
_RACER = """
import sys
from pathlib import Path
from lorry.model.store import build_once
from support.patience import wait_until

folder, log, here = map(Path, sys.argv[1:4])

def build(staging):
    with log.open("a") as file:
        file.write("built\\n")
    (staging / "a").write_text("1")
    wait_until(lambda: len(list(here.parent.iterdir())) == int(sys.argv[4]), "the others")
    (staging / "b").write_text("2")

here.touch()
folder = build_once(folder, build, source="x", say=lambda line: print(line))
print("saw", sorted(item.name for item in folder.iterdir()))
"""


def build_one_file(staging: Path) -> None:
    (staging / "weights").write_bytes(b"123")


def test_it_is_built_once_and_says_from_what(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "x"
    assert build_once(folder, build_one_file, source="x.gguf", say=pytest.fail) == folder
    assert (folder / "weights").read_bytes() == b"123"
    assert source_of(folder) == "x.gguf"
    assert source_of(tmp_path) is None

    def again(staging: Path) -> None:
        pytest.fail("it is there already")

    build_once(folder, again, source="x.gguf", say=pytest.fail)


def test_processes_that_start_at_once_build_it_once(tmp_path: Path) -> None:
    folder, log, here = tmp_path / "models" / "x", tmp_path / "log", tmp_path / "racers"
    here.mkdir()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, *map(str, (folder, log, here / str(i), RACERS))],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        for i in range(RACERS)
    ]
    outputs = [racer.communicate(timeout=PATIENCE)[0] for racer in racers]
    assert all(racer.returncode == 0 for racer in racers)
    assert all("saw ['a', 'b', 'lorry.json']" in output for output in outputs)
    assert log.read_text() == "built\n"


def test_a_build_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "x"

    def fail(staging: Path) -> None:
        build_one_file(staging)
        raise ModelError("no network")

    with pytest.raises(ModelError, match="no network"):
        build_once(folder, fail, source="x", say=pytest.fail)
    assert [item.name for item in tmp_path.iterdir()] in ([], ["x.lock"])
    build_once(folder, build_one_file, source="x", say=pytest.fail)
    assert (folder / "weights").exists()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    partial = tmp_path / "x.partial"
    partial.mkdir()
    (partial / "half").write_text("garbage")
    folder = build_once(tmp_path / "x", build_one_file, source="x", say=pytest.fail)
    assert not partial.exists() and not (folder / "half").exists()


MANIFESTS = [
    "",
    "{",
    "[]",
    "5",
    "null",
    "{}",
    '{"files": 5}',
    '{"files": [1]}',
    "\x00",
    "[" * 100_000,
]


@pytest.mark.parametrize("damage", ["truncate", "remove", *MANIFESTS], ids=lambda text: text[:20])
def test_a_damaged_folder_is_refused_by_its_path(tmp_path: Path, damage: str) -> None:
    folder = build_once(tmp_path / "x", build_one_file, source="x", say=pytest.fail)
    if damage == "truncate":
        (folder / "weights").write_bytes(b"12")
    elif damage == "remove":
        (folder / "weights").unlink()
    else:
        (folder / "lorry.json").write_text(damage)
        assert source_of(folder) is None
    with pytest.raises(ModelError) as caught:
        build_once(folder, build_one_file, source="x", say=pytest.fail)
    assert str(folder) in caught.value.message and "delete that folder" in caught.value.message


def test_a_full_disk_and_a_cache_that_is_no_folder(tmp_path: Path) -> None:
    def full(staging: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match=r"no space left in .*LORRY_HOME"):
        build_once(tmp_path / "x", full, source="x", say=pytest.fail)
    assert not (tmp_path / "x.partial").exists()
    with pytest.raises(ModelError, match=r"needs 1024.0 TiB in .* are free; make room"):
        require_room(tmp_path, 1 << 50, "converting x")
    require_room(tmp_path, 1, "converting x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be used"):
        build_once(tmp_path / "file" / "x", build_one_file, source="x", say=pytest.fail)


def test_sha256_is_metered(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"ab" * 1_000_000)
    seen: list[tuple[str, int, int]] = []
    digest = sha256_of(file, lambda *news: seen.append(news))
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert seen[-1] == ("checking f", 2_000_000, 2_000_000) and len(seen) == 2
