"""The build hook: what it makes of every compiler that a machine may have."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorry.model.compiled import library, recipe

ROOT = Path(__file__).resolve().parents[2]
COMPILED = Path("server/lorry/model/compiled")
SOURCES = ("recipe.py", "step.c", *sorted(path.name for path in (ROOT / COMPILED).glob("*.h")))
NAMES = [recipe.file_name(instructions) for instructions in recipe.INSTRUCTIONS]

LINUX = sysconfig.get_platform() == "linux-x86_64"
needs_linux = pytest.mark.skipif(not LINUX, reason="the step is made for Linux on x86-64")
needs_compiler = pytest.mark.skipif(
    not LINUX or shutil.which("cc") is None, reason="needs Linux on x86-64 and a C compiler"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The part of a checkout that is compiled."""
    (tmp_path / COMPILED).mkdir(parents=True)
    for name in SOURCES:
        shutil.copy(ROOT / COMPILED / name, tmp_path / COMPILED / name)
    shutil.copy(ROOT / "server/build_compiled.py", tmp_path / "server/build_compiled.py")
    return tmp_path


@pytest.fixture
def build(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    monkeypatch.delenv("CC", raising=False)

    def built() -> list[str]:
        made: list[Path] = _module(checkout / "server/build_compiled.py").build()
        assert all(path.parent == checkout / COMPILED for path in made)
        leftovers = {path.name for path in (checkout / COMPILED).iterdir()} - {*SOURCES, *NAMES}
        assert leftovers <= {"__pycache__"}
        return [path.name for path in made]

    return built


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("built", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pretender(folder: Path, refuses: str = "nothing") -> Path:
    """A compiler in no time: what comes out are its arguments. It may refuse one of them."""
    path = folder / "pretender"
    path.write_text(f"""#!/bin/sh
case "$*" in *{refuses}*) echo "unknown option {refuses}" >&2; exit 1;; esac
arguments="$*"
while [ "$1" != -o ]; do shift; done
echo "$arguments" > "$2"
""")
    path.chmod(0o755)
    return path


@needs_compiler
def test_each_instruction_set_is_built_and_runs(
    build: Callable[[], list[str]], checkout: Path
) -> None:
    assert build() == NAMES
    name, built = library.find(checkout / COMPILED)
    assert name == library.instructions()[0]
    assert built.lorry_sources().decode() == recipe.sources()


@needs_linux
def test_a_library_that_is_open_is_replaced_and_not_written_over(
    build: Callable[[], list[str]],
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", str(pretender(tmp_path)))
    assert build() == NAMES
    with (checkout / COMPILED / NAMES[0]).open("rb") as old:
        before = old.read()
        assert build() == NAMES
        old.seek(0)
        assert old.read() == before
        assert os.fstat(old.fileno()).st_ino != (checkout / COMPILED / NAMES[0]).stat().st_ino


@needs_linux
def test_the_compiler_may_come_with_arguments(
    build: Callable[[], list[str]],
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", f"env LANG=C {pretender(tmp_path)} '-D A=1'")
    assert build() == NAMES
    assert (checkout / COMPILED / NAMES[1]).read_text().startswith("-D A=1 -std=gnu11")


@needs_linux
@pytest.mark.parametrize(("unknown", "lacks"), [("-mamx-tile", 1), ("-mavx512vnni", 2)])
def test_an_old_compiler_builds_what_it_knows(
    unknown: str,
    lacks: int,
    build: Callable[[], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CC", str(pretender(tmp_path, unknown)))
    assert build() == NAMES[lacks:]
    assert f"unknown option {unknown}" in capfd.readouterr().err


@pytest.mark.parametrize("compiler", ["/bin/false", "/no/such/cc", "/bin/true", "cc '"])
def test_a_broken_compiler_costs_the_step_and_nothing_else(
    compiler: str,
    build: Callable[[], list[str]],
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert build() == []
    assert "lorry: " in capfd.readouterr().err
    with pytest.raises(library.Missing, match=r"it was not built; install a C compiler"):
        library.find(checkout / COMPILED)


def test_without_a_compiler_it_is_said(
    build: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert build() == []
    if LINUX:
        assert "no C compiler" in capfd.readouterr().err


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_counts_in_what_a_library_was_made_from(name: str, checkout: Path) -> None:
    assert _module(checkout / COMPILED / "recipe.py").sources() == recipe.sources()
    with (checkout / COMPILED / name).open("a") as source:
        source.write("\n")
    assert _module(checkout / COMPILED / "recipe.py").sources() != recipe.sources()


def test_make_builds_again_when_a_source_changes() -> None:
    rules = subprocess.run(
        ["make", "--print-data-base", "--dry-run", "--question", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for stamp in (".venv/.installed", ".venv/.installed-dev"):
        (rule,) = (line for line in rules.splitlines() if line.startswith(f"{stamp}: "))
        for name in SOURCES:
            assert str(COMPILED / name) in rule.split(), name


# ---- what an installation is made from


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in version control and what will be, and nothing that was built here."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("server", "adapters"):
        shutil.copytree(
            ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.tmp")
        )
    return tree


def package(tree: Path, target: str, out: Path, **environment: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)],
        cwd=tree,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=True,
    )
    (made,) = out.iterdir()
    return made


@needs_linux
def test_the_wheel_has_the_step_and_says_for_which_machines(
    source_tree: Path, tmp_path: Path
) -> None:
    compiler = pretender(tmp_path)
    wheel = package(source_tree, "wheel", tmp_path / "dist", CC=str(compiler))
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {f"lorry/model/compiled/{name}" for name in NAMES} <= set(archive.namelist())
        archive.extractall(tmp_path / "out")
    # The server looks at what lies beside the libraries.
    installed = tmp_path / "out/lorry/model/compiled"
    assert _module(installed / "recipe.py").sources() == recipe.sources()
    assert recipe.sources() in (installed / NAMES[0]).read_text()


def test_without_a_compiler_the_wheel_is_for_every_machine(
    source_tree: Path, tmp_path: Path
) -> None:
    # Nor does it take along what an earlier build has left in the tree.
    for name in NAMES:
        (source_tree / COMPILED / name).write_bytes(b"old")
    wheel = package(source_tree, "wheel", tmp_path / "dist", CC="/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        assert "lorry/model/compiled/step.c" in archive.namelist()


def test_the_source_distribution_can_be_built_from(source_tree: Path, tmp_path: Path) -> None:
    with tarfile.open(package(source_tree, "sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {str(COMPILED / name) for name in SOURCES} <= names
    assert "server/build_compiled.py" in names
    assert not [name for name in names if name.endswith(".so")]
