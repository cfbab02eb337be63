"""`lorry_adapters` says what is wrong; the server and its commands say what to do about it."""

from __future__ import annotations

import ast
import logging
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.main import get_command

import lorry.engine
import lorry_adapters
from lorry.advice import ADVICE, advised, message_of
from lorry.cli import build_app
from lorry.errors import EngineRemedy
from lorry.settings import options
from lorry_adapters.errors import AdapterDisabled, InvalidAdapter, Problem, Remedy
from lorry_adapters.lora.columns import doubts

ADAPTERS = Path(lorry_adapters.__path__[0])
ADVISING = re.compile(r"(?<![\w-])--[a-z][\w-]*|\blorry [a-z]+|\bLORRY_|python -c")


def trees() -> Iterator[tuple[str, ast.AST]]:
    for file in sorted(ADAPTERS.rglob("*.py")):
        yield file.relative_to(ADAPTERS).as_posix(), ast.parse(file.read_text())


def test_what_an_adapter_is_knows_no_flag_and_no_command() -> None:
    found = [
        (file, node.lineno, node.value)
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and ADVISING.search(node.value)
    ]
    assert found == []


def test_every_remedy_has_advice_and_every_problem_the_facts_for_it() -> None:
    assert set(ADVICE) == set(Remedy) | set(EngineRemedy)
    used = set()
    for file, tree in trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem"):
                continue
            facts = {keyword.arg for keyword in node.keywords}
            for remedy in {
                Remedy[inner.attr]
                for argument in node.args
                for inner in ast.walk(argument)
                if isinstance(inner, ast.Attribute) and getattr(inner.value, "id", "") == "Remedy"
            }:
                fields = {field for _, field, _, _ in string.Formatter().parse(ADVICE[remedy])}
                wanted = {"argument" if field == "flag" else field for field in fields if field}
                assert wanted <= facts, f"{file}: {remedy} lacks {wanted - facts}"
                used.add(remedy)
    # `archive` has a variable for it; GROUP_EXPERTS is for a warning that is stored as text; how
    # much an adapter needs is known to the server alone (`lorry.adapter_needs`).
    elsewhere = {Remedy.RAISE_MAX_UPLOAD, Remedy.GROUP_EXPERTS, Remedy.RAISE_ADAPTER_MEMORY}
    assert set(Remedy) - used == elsewhere


def commands(group: typer.core.TyperGroup, path: str) -> Iterator[tuple[str, set[str]]]:
    """Every command with its flags."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", {flag for one in command.params for flag in one.opts}


def test_what_is_advised_is_there_to_be_typed() -> None:
    there = dict(commands(get_command(build_app()), "lorry"))
    settings = there["lorry serve"]
    variables = {option.variable for option in options()}
    for text in ADVICE.values():
        named = re.search(r"lorry [a-z]+(?: [a-z]+)?(?= [A-Z{]| makes)", text)
        flags = set(re.findall(r"(?<![\w-])--[a-z-]+", text))
        if named is not None:
            assert flags <= there[named[0]], text
        elif not re.search(r"\btar\b", text):
            assert flags <= settings, text
        assert set(re.findall(r"LORRY_\w+", text)) <= variables


@pytest.mark.parametrize(
    ("argument", "command"),
    [
        ("initial", "lorry adapters convert"),
        ("task", "lorry adapters convert"),
        ("experts_grouped", "lorry adapters convert"),
        ("base", "lorry adapters inspect"),
        ("tokenizer", "lorry models extend"),
    ],
)
def test_an_argument_of_a_tool_is_an_option_of_its_command(argument: str, command: str) -> None:
    there = dict(commands(get_command(build_app()), "lorry"))
    said = advised(Problem("it is in vain", Remedy.LEAVE_OUT, argument=argument))
    flag = said.removeprefix("it is in vain; leave ").removesuffix(" out")
    assert flag in there[command]


def test_an_error_says_what_to_do() -> None:
    error = AdapterDisabled(Problem("adapter 'a' is disabled", Remedy.ENABLE, name="a"))
    assert "lorry" not in error.message
    assert message_of(error) == "adapter 'a' is disabled; enable it first (lorry adapters enable a)"


def test_the_first_of_several_problems_has_its_advice_before_the_count() -> None:
    rank = Problem("rank 64 is over 32", Remedy.RAISE_MAX_RANK, needed=64, limit=32)
    error = InvalidAdapter([rank, "and another"])
    assert error.message == "rank 64 is over 32 (and 1 more)"
    said = message_of(error)
    assert said.startswith("rank 64 is over 32; --max-lora-rank 64 ")
    assert said.endswith(" (and 1 more)")


def test_a_problem_within_another_sentence_keeps_its_remedy() -> None:
    inner = Problem("rank 64 is over 32", Remedy.RAISE_MAX_RANK, needed=64, limit=32)
    outer = Problem.within(f"it cannot be served: {inner}", inner)
    assert advised(outer).startswith("it cannot be served: rank 64 is over 32; --max-lora-rank 64")
    assert advised(Problem.within("it is gone", "gone")) == "it is gone"


def test_a_warning_that_was_stored_as_text_has_its_advice() -> None:
    assert "lorry adapters convert FOLDER --experts-grouped" in advised(doubts("it says nothing"))


def test_a_line_of_the_log_has_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    from lorry.logs import setup

    root = logging.getLogger()
    before = list(root.handlers)
    try:
        setup("info", "text", sys.stderr)
        problem = Problem("rank 64 is over 32", Remedy.RAISE_MAX_RANK, needed=64, limit=32)
        logging.getLogger("lorry_adapters").warning("%s: %s", "sha256:1", problem)
    finally:
        root.handlers[:] = before
    assert "rank 64 is over 32; --max-lora-rank 64" in capsys.readouterr().err


FLAG_OR_ROUTE = re.compile(r"--[a-z]|\b(GET|POST|PUT) /|/v1/|\blorry [a-z]")


def test_the_engine_knows_neither_flags_nor_routes() -> None:
    for file in sorted(Path(lorry.engine.__path__[0]).glob("*.py")):
        tree = ast.parse(file.read_text())
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert id(node) in prose or not FLAG_OR_ROUTE.search(node.value), (
                    f"{file}: {node.value!r}"
                )
