"""The promises of the documentation: what it names exists, and what exists it names."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from lorry.cli import build_app
from lorry.settings import options
from support import readme, recording

ROOT = readme.ROOT
PAGES = [
    "README.md",
    ".github/CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(
        str(path.relative_to(ROOT))
        for folder in ("docs", "server", "adapters", "benchmarks", "clients", "docker")
        for path in (ROOT / folder).rglob("*.md")
    ),
]


def shell_lines(text: str) -> Iterator[str]:
    """Of the fenced blocks without a language, continued lines joined."""
    for block in readme.shell_blocks(text):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()


def commands() -> dict[tuple[str, ...], Any]:
    """Every command of `lorry` by its words."""
    found: dict[tuple[str, ...], Any] = {}

    def walk(words: tuple[str, ...], command: Any) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk((*words, name), child)
        if not hasattr(command, "commands"):
            found[words] = command

    walk((), get_command(build_app()))
    return found


@pytest.mark.parametrize("name", list(readme.sections()))
def test_sections_made_from_the_code_are_up_to_date(name: str) -> None:
    assert readme.written(name) == readme.sections()[name](), "run: make docs"


def test_every_setting_is_in_the_docs() -> None:
    text = readme.written("settings")
    for option in options():
        assert option.variable in text
        assert option.flag in text


def test_every_command_is_in_the_docs() -> None:
    text = "".join(page.read_text() for page in readme.DOCS.glob("*.md"))
    missing = [words for words in commands() if f"lorry {' '.join(words)}" not in text]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_docs_exist(page: str) -> None:
    exist(shell_lines((ROOT / page).read_text()))


def test_the_recording_is_of_commands_that_exist() -> None:
    turns = list(shown_turns())
    assert [command for command, _ in turns] == list(recording.SCENE), "run: make recording"
    assert all(lines for _, lines in turns)
    exist(recording.SCENE)
    exist(recording.AFTERWARDS)
    samples = json.loads((ROOT / "adapters/samples/samples.json").read_text())["samples"]
    listed = {line.split()[0] for line in turns[0][1][2:]}
    assert listed == {sample["name"] for sample in samples}, "run: make recording"


def test_the_recording_is_drawn_as_the_script_draws() -> None:
    turns = [(command, "\n".join(lines)) for command, lines in shown_turns()]
    assert recording.drawn(turns) == recording.FILE.read_text(), "run: make recording"


def test_the_recording_is_a_picture_and_nothing_else() -> None:
    text = recording.FILE.read_text()
    assert len(text) < 150_000
    kinds = {element.tag.rpartition("}")[2] for element in ET.fromstring(text).iter()}
    assert kinds == {"svg", "title", "style", "rect", "text"}
    without_namespace = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"://|\bon\w+=|href|@import|url\(|javascript:", without_namespace)
    assert "prefers-reduced-motion: reduce" in text


def shown_turns() -> Iterator[tuple[str, list[str]]]:
    """The commands that the recording shows, and the lines that each wrote."""
    turn: tuple[str, list[str]] | None = None
    for element in ET.parse(recording.FILE).getroot().iter("{http://www.w3.org/2000/svg}text"):
        line = element.text or ""
        if element.get("class") == "typed":
            if turn:
                yield turn
            turn = (line.removeprefix("$ "), [])
        else:
            assert turn is not None, line
            turn[1].append(line)
    if turn:
        yield turn


def exist(lines: Iterable[str]) -> None:
    """Every `lorry` command among the lines, and every flag of it, is one."""
    known = commands()
    for line in lines:
        line = line.removeprefix("$ ")
        if not line.startswith("lorry "):
            continue
        words = shlex.split(line, comments=True)[1:]
        if words[0].startswith("-"):
            continue
        path = next((key for key in known if tuple(words[: len(key)]) == key), None)
        assert path is not None, line
        flags = {flag for item in known[path].params for flag in (*item.opts, *item.secondary_opts)}
        for word in words[len(path) :]:
            if word == "--":
                break
            if word.startswith("--"):
                assert word.partition("=")[0] in flags, line


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_in_the_docs_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / page).read_text()
    named = re.findall(r"`make ([a-z-]+)", text)
    named += [line.split()[1] for line in shell_lines(text) if re.match(r"(\$ )?make [a-z]", line)]
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_calls_in_the_docs_are_served(page: str) -> None:
    paths = readme.openapi()["paths"]
    for line in shell_lines((ROOT / page).read_text()):
        found = re.search(r"curl .*?localhost:8000(/[^\s'\"?]*)", line)
        if found is None:
            continue
        asked = re.search(r"-X (\w+)", line)
        sends = re.search(r" (-d|-F|--data|--form) ", line)
        method = asked.group(1).lower() if asked else "post" if sends else "get"
        assert any(
            method in methods and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), found.group(1))
            for path, methods in paths.items()
        ), line


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = file.parent / path if path else file
        assert there.exists(), f"{page}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there.read_text()), f"{page}: {target}"


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them; a comment in a code block is none."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    made: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w -]", "", words).lower().replace(" ", "-")
        count = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", one) is not None for one in made)
        made.add(f"{anchor}-{count}" if count else anchor)
    return made


def test_the_start_page_leads_to_every_page() -> None:
    text = (readme.DOCS / "README.md").read_text()
    pages = {page.name for page in readme.DOCS.glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in text} == set()
    assert "(docs/README.md)" in readme.README.read_text()


def test_the_readme_takes_ten_minutes() -> None:
    assert len(readme.README.read_text().splitlines()) <= 150


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "server/decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert pages
    for page in pages:
        assert f"({page})" in index
    numbers = [page[:4] for page in pages]
    assert len(numbers) == len(set(numbers)), "two decisions share a number"


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nothing says which files are the project's")
    traces = [f"/{name}/".encode() for name in ("root", "work")]
    guilty = [
        name
        for name in listed.stdout.decode().split("\0")
        if name and (ROOT / name).is_file()
        if any(trace in Path(ROOT / name).read_bytes() for trace in traces)
    ]
    assert guilty == []
