"""Grammars that somebody sends to hurt: each is refused by name or followed, in bounded time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorry.constraint import MAX_GRAMMAR, Grammar, GrammarKind
from lorry.engine import grammar as room
from lorry.engine.grammar import GrammarCompiler
from lorry.errors import InvalidRequest, QueueFull, RequestError
from support.patience import wait_until
from support.tokenizer import EOS, build_tokenizer

TOKENIZER = build_tokenizer(add_bos=False)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    one = GrammarCompiler(TOKENIZER.backend_tokenizer, frozenset({EOS}))
    yield one
    one.close()


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


def record(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name]}


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


def doubled(levels: int, word: str) -> dict[str, Any]:
    defs: dict[str, Any] = {"d0": record("x", {"type": "string"})}
    for level in range(1, levels):
        twice = [ref(f"d{level - 1}"), {"type": "array", "items": ref(f"d{level - 1}")}]
        defs[f"d{level}"] = {word: twice if word == "anyOf" else twice[:1] * 2}
    return {"$defs": defs, **ref(f"d{levels - 1}")}


NO_LENGTH = {"minLength": 5, "maxLength": 2}

SCHEMAS: dict[str, Any] = {
    "refers to itself": {"$ref": "#"},
    "a definition that is itself": {"$defs": {"a": ref("a")}, **ref("a")},
    "two definitions in a ring": {"$defs": {"a": ref("b"), "b": ref("a")}, **ref("a")},
    "no end of it": {"$defs": {"a": record("n", ref("a"))}, **ref("a")},
    "itself or a text": {"anyOf": [{"$ref": "#"}, {"type": "string"}]},
    "itself and a text": {"allOf": [{"$ref": "#"}, {"type": "string"}]},
    "a ring of allOf": {
        "$defs": {"a": {"allOf": [ref("b"), {}]}, "b": {"allOf": [ref("a"), {}]}},
        **ref("a"),
    },
    "a definition that is not there": ref("nowhere"),
    "another server": {"$ref": "http://127.0.0.1:1/schema.json"},
    "a file": {"$ref": "file:///etc/passwd"},
    "a large enum": {"enum": [f"value number {i}" for i in range(10_000)]},
    "many properties": {"properties": {f"p{i}": {"type": "string"} for i in range(10_000)}},
    "many places": {"type": "array", "prefixItems": [{"type": "integer"}] * 20_000},
    "deep": nested(300),
    "very deep": nested(20_000),
    "doubling choices": doubled(200, "anyOf"),
    "doubling sums": doubled(40, "allOf"),
    "choices multiplied": {
        "allOf": [
            {"anyOf": [record(f"k{i}_{j}", {"type": "string"}) for j in range(4)]}
            for i in range(14)
        ]
    },
    "a long text": {"type": "string", "minLength": 10**9},
    "a long list": {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    "longer than itself": {"type": "string", "minLength": 5, "maxLength": 2},
    "a pattern of a million": {"type": "string", "pattern": "^(a{1000}){1000}$"},
    "a pattern and its opposite": {"type": "string", "pattern": "^a$", "minLength": 3},
    "a pattern that looks ahead": {"type": "string", "pattern": "^(?=a)b$"},
    "many patterns": {
        "type": "object",
        "patternProperties": {f"^(a|b){{{i}}}$": {"type": "string"} for i in range(100)},
    },
    "a multiple of a large number": {"type": "integer", "multipleOf": 7919 * 7907},
    "a range with many digits": {"type": "number", "minimum": 0.123456789, "maximum": 1e300},
    "a huge number": '{"type": "integer", "maximum": 1' + "0" * 500 + "}",
    "never": {"not": {}},
    "two types at once": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "options of the library": {"x-guidance": {"lenient": "yes"}, "type": "string"},
}

PATTERNS = {
    "a million": "a{1000}{1000}",
    "a million, deeper": "((a{100}){100}){100}",
    "in the midst": "xyz(a{1000}){1000}",
    "nothing": r"[^\s\S]",
    "the empty text": "",
    "backtracking": "(a|a)*(a|a)*(a|a)*b",
    "a counter of states": "(a|b)*a(a|b){25}",
    "many states": "(.*a){20}.*",
    "much in common": "(" + "|".join(f"(.*{one}){{10}}" for one in "abcdefghij") + ")*z",
    "a long literal": "a" * 100_000,
    "many words": "|".join(f"word{i}" for i in range(20_000)),
    "deep": "(" * 10_000 + "a" + ")" * 10_000,
    "deep stars": "(" * 100 + "a" + ")*" * 100,
    "a reference back": r"(a)\1",
    "unicode": r"\p{L}{1,300}\p{N}{1,300}",
    "broken": "(a",
}

LARK = {
    "nothing": "start: start | start start",
    "the empty text": 'start: ""',
    "empty": "",
    "no start": 'other: "a"',
    "a rule that is not there": "start: other",
    "a million": 'start: "a"{1000000}',
    "a million, deeper": 'start: b{1000}\nb: c{1000}\nc: "a"{1000}',
    "a huge number": 'start: "a"{99999999999999999999}',
    "deep": "start: " + "(" * 10_000 + '"a"' + ")" * 10_000,
    "ambiguous": "start: a a a a a a a a\na: "
    + " | ".join(f"a{i}" for i in range(50))
    + "".join(f'\na{i}: "x"*' for i in range(50)),
    "many rules": "start: r0\n"
    + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(5000))
    + 'r5000: "a"',
    "left recursion": 'start: start "a" | "b"',
    "a terminal in itself": 'start: A\nA: A "b" | "c"',
    "much in common": "start: A\nA: /" + "|".join(f"(.*{one}){{10}}" for one in "abcdefghij") + "/",
    "a schema in it": 'start: %json {"type": "integer", "multipleOf": 62615533}',
    "a grammar of another": "start: @other",
    "an import of a file": "%import .file.RULE\nstart: RULE",
    "an option of the library": '%llguidance {"no_forcing": 1}\nstart: "a"',
    "all special tokens": "start: <[0-100000]>",
    "broken": 'start: "a',
    "a zero": 'start: "\0"',
    "negation": "start: A\nA: /[a-z]+/ & ~/(.*a){20}.*/",
}

GBNF = {
    "no root": 'other ::= "a"',
    "a rule that is not there": "root ::= other",
    "itself": "root ::= root",
    "a million": 'root ::= "a"{1000000}',
    "a million, deeper": 'root ::= b{1000}\nb ::= c{1000}\nc ::= "a"{1000}',
    "deep": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000,
    "doubling": "root ::= r0\n"
    + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(200))
    + 'r200 ::= "a"',
    "many rules": "root ::= r0\n"
    + "".join(f'r{i} ::= "a" r{i + 1} | "b"\n' for i in range(5000))
    + 'r5000 ::= "a"',
    "much in common": "root ::= " + " | ".join(f'(.* "{one}"){{10}}' for one in "abcdefghij"),
    "half a character": r'root ::= "\ud800"',
    "no character": r'root ::= "\Uffffffff"',
    "half an escape": 'root ::= "a\\',
    "broken": 'root ::= "a',
    "long": "root ::= " + '"a" ' * 60_000,
    "names alike": 'root ::= fooBar foo-bar\nfooBar ::= "x"\nfoo-bar ::= "y"',
}

CHOICES = {
    "many": [f"value number {i}" for i in range(20_000)],
    "much in common": ["a" * i for i in range(1, 900)],
    "long": ["a" * 200_000, "b"],
    "one": ["a"],
}

OTHERS = [
    pytest.param(kind, text, id=f"{kind}: {name}")
    for kind, grammars in [
        (GrammarKind.LARK, LARK),
        (GrammarKind.GBNF, GBNF),
        (GrammarKind.CHOICE, {name: json.dumps(one) for name, one in CHOICES.items()}),
    ]
    for name, text in grammars.items()
]

GRAMMARS = [
    pytest.param(
        GrammarKind.JSON, one if isinstance(one, str) else json.dumps(one), id=f"schema: {name}"
    )
    for name, one in SCHEMAS.items()
] + [pytest.param(GrammarKind.REGEX, one, id=f"pattern: {name}") for name, one in PATTERNS.items()]
GRAMMARS += OTHERS


@pytest.mark.parametrize(("kind", "text"), GRAMMARS)
def test_it_is_refused_by_name_or_followed(
    compiler: GrammarCompiler, kind: GrammarKind, text: str
) -> None:
    try:
        (constraint,) = compiler.compile(Grammar(kind, text, "response_format"))
        for _ in range(20):
            words = constraint.allowed()
            token = next(
                32 * index + bit
                for index, word in enumerate(words)
                for bit in range(32)
                if word >> bit & 1
            )
            if token == EOS:
                break
            constraint.advance(token)
    except RequestError as error:
        assert isinstance(error, InvalidRequest), error
        assert error.param == "response_format"
        assert error.message.startswith("response_format: this ")
        assert "\n" not in error.message and len(error.message) < 600
    # Whatever became of that one, the next is served.
    compiler.compile(Grammar(GrammarKind.REGEX, "next", "grammar"))


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (GrammarKind.JSON, '{"$ref": "#"}', "no text matches it"),
        (GrammarKind.REGEX, r"[^\s\S]", "no text matches it"),
        (GrammarKind.JSON, '{"if": {}, "then": {}}', 'the keywords "if", "then" are not supported'),
        (GrammarKind.JSON, '{"type": "integer", "multipleOf": 62615533}', "5 s of processor time"),
        (GrammarKind.JSON, " " * (MAX_GRAMMAR + 1), f"the most is {MAX_GRAMMAR}"),
        (
            GrammarKind.JSON,
            json.dumps(record("a", record("b", {"type": "string", **NO_LENGTH}))),
            "at #/properties/a/properties/b: no value matches it: minLength (5) is greater",
        ),
        (
            GrammarKind.JSON,
            json.dumps({"$defs": {"x": {"not": {}}}, **record("a", {"items": ref("x")})}),
            'at #/$defs/x: the keywords "not" are not supported',
        ),
        (
            GrammarKind.JSON,
            json.dumps({"properties": {"a/b": {"type": "cat"}, "c": {"type": "integer"}}}),
            "at #/properties/a~1b: Invalid type: cat",
        ),
        (
            GrammarKind.JSON,
            json.dumps({"properties": {"a": {"pattern": "(?=a)b"}}}),
            "at #/properties/a: regex parse error: look-around",
        ),
        (GrammarKind.REGEX, "(a", "regex parse error: unclosed group"),
        (GrammarKind.LARK, "start: a\na: b", 'at 2(4): unknown name: "b"'),
        (GrammarKind.GBNF, "root ::= other", "Rule 'other' not found"),
        (GrammarKind.GBNF, 'root ::= "a" (', "at line 1"),
    ],
)
def test_what_is_wrong_is_said(
    compiler: GrammarCompiler, kind: GrammarKind, text: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(Grammar(kind, text, "grammar"))
    assert words in caught.value.message


def test_memory_is_bounded() -> None:
    program = (
        "from lorry.engine import grammar_process as room; room.bound_memory(room.MEMORY); "
        "bytearray(room.MEMORY // 2); print('half'); bytearray(2 * room.MEMORY); print('whole')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "half\n"
    assert "MemoryError" in done.stderr


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_end(pid: int) -> None:
    wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists(), f"the end of process {pid}")


@pytest.fixture
def own() -> Iterator[tuple[GrammarCompiler, int]]:
    """A compiler and the process that holds its tokenizer."""
    before = children(os.getpid())
    one = GrammarCompiler(TOKENIZER.backend_tokenizer, frozenset({EOS}))
    one.compile(Grammar(GrammarKind.REGEX, "first", "grammar"))
    (host,) = set(children(os.getpid())) - set(before)
    yield one, host
    one.close()


def test_sixteen_answers_take_one_process_and_so_does_the_next_request(
    own: tuple[GrammarCompiler, int],
) -> None:
    compiler, host = own
    before = set(children(host))
    grammar = Grammar(GrammarKind.REGEX, "[ab]+", "grammar")
    sixteen = compiler.compile(grammar, 16)
    again = compiler.compile(Grammar(GrammarKind.REGEX, "[ab]+", "response_format"))
    assert len(set(children(host)) - before) == 1
    token = TOKENIZER.convert_tokens_to_ids("a")
    for one in (*sixteen, *again):
        one.advance(token)
        assert not one.finished()


def test_a_grammar_that_is_killed_ends_alone(own: tuple[GrammarCompiler, int]) -> None:
    compiler, host = own
    before = set(children(host))
    (one,) = compiler.compile(Grammar(GrammarKind.REGEX, "[ab]+", "grammar"))
    (other,) = compiler.compile(Grammar(GrammarKind.REGEX, "[abc]+", "grammar"))
    process = min(set(children(host)) - before)
    os.kill(process, signal.SIGKILL)
    token = TOKENIZER.convert_tokens_to_ids("a")
    with pytest.raises(InvalidRequest, match="followed to the end"):
        one.advance(token)
    other.advance(token)
    # The next request with that grammar has it compiled anew.
    (again,) = compiler.compile(Grammar(GrammarKind.REGEX, "[ab]+", "grammar"))
    again.advance(token)


def test_the_process_with_the_tokenizer_is_started_again(own: tuple[GrammarCompiler, int]) -> None:
    compiler, host = own
    (one,) = compiler.compile(Grammar(GrammarKind.REGEX, "[ab]+", "grammar"))
    os.kill(host, signal.SIGKILL)
    token = TOKENIZER.convert_tokens_to_ids("a")
    one.advance(token)
    (other,) = compiler.compile(Grammar(GrammarKind.REGEX, "[abc]+", "grammar"))
    other.advance(token)


def test_a_tokenizer_s_process_that_dies_with_a_grammar_sent_to_it_is_replaced(
    own: tuple[GrammarCompiler, int],
) -> None:
    compiler, host = own
    # Stopped, it takes what is sent to it and makes nothing of it.
    os.kill(host, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (host, signal.SIGKILL))
    killer.start()
    (other,) = compiler.compile(Grammar(GrammarKind.REGEX, "[abc]+", "grammar"))
    killer.join()
    other.advance(TOKENIZER.convert_tokens_to_ids("a"))


def test_processes_end_with_their_answers_and_the_compiler(
    own: tuple[GrammarCompiler, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_KEPT", 1)
    compiler, host = own
    before = set(children(host))
    constraints = compiler.compile(Grammar(GrammarKind.REGEX, "[ab]+", "grammar"))
    (process,) = set(children(host)) - before
    compiler.compile(Grammar(GrammarKind.REGEX, "another", "grammar"))
    constraints[0].advance(TOKENIZER.convert_tokens_to_ids("a"))
    del constraints
    wait_for_end(process)
    compiler.close()
    wait_for_end(host)


def test_so_many_grammars_are_in_use_and_no_more(
    own: tuple[GrammarCompiler, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_LIVE", 3)
    compiler, _ = own
    held = [
        compiler.compile(Grammar(GrammarKind.REGEX, text, "grammar")) for text in ("a", "b", "c")
    ]
    with pytest.raises(QueueFull, match="3 different grammars"):
        compiler.compile(Grammar(GrammarKind.REGEX, "d", "grammar"))
    held.pop()
    compiler.compile(Grammar(GrammarKind.REGEX, "d", "grammar"))


def test_one_process_follows_so_many_answers_and_no_more(
    own: tuple[GrammarCompiler, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_SHARED", 4)
    compiler, host = own
    grammar = Grammar(GrammarKind.REGEX, "[ab]+", "grammar")
    before = len(children(host))
    held = [compiler.compile(grammar, 2) for _ in range(4)]
    assert len(children(host)) - before == 2
    held.clear()
    assert compiler.compile(grammar)
