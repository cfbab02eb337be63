"""Grammars: what a random walk along the masks writes is what the grammar says."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

import pytest

from lorry.core import Constraint
from lorry.engine.grammar import Grammar, GrammarCompiler, GrammarKind
from lorry.errors import GenerationFailed, InvalidRequest
from support.tokenizer import EOS, VOCAB_SIZE, build_tokenizer

TOKENIZER = build_tokenizer(add_bos=False)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    one = GrammarCompiler(TOKENIZER, frozenset({EOS}))
    yield one
    one.close()


def constraint_of(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> Constraint:
    (one,) = compiler.compile(Grammar(kind, text, "grammar"))
    return one


def allowed(constraint: Constraint) -> list[int]:
    words = constraint.allowed()
    return [
        32 * index + bit for index, word in enumerate(words) for bit in range(32) if word >> bit & 1
    ]


def walk(constraint: Constraint, seed: int) -> str:
    """Random allowed tokens until only the end is left."""
    draw = random.Random(seed)
    ids: list[int] = []
    for _ in range(500):
        choices = allowed(constraint)
        assert max(choices) < VOCAB_SIZE
        if constraint.finished():
            assert choices == [EOS]
            return str(TOKENIZER.decode(ids))
        token = draw.choice(choices)
        if token == EOS:
            return str(TOKENIZER.decode(ids))
        constraint.advance(token)
        ids.append(token)
    raise AssertionError("the grammar did not end")


@pytest.mark.parametrize("seed", range(5))
def test_json(compiler: GrammarCompiler, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "sizes": {"items": {"type": "boolean"}}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    schema["properties"]["sizes"].update(type="array", maxItems=3)  # type: ignore[index]
    constraint = constraint_of(compiler, GrammarKind.JSON, json.dumps(schema))
    value = json.loads(walk(constraint, seed))
    assert value["kind"] in ("a", "b")
    assert all(isinstance(one, bool) for one in value.get("sizes", []))


def test_regex(compiler: GrammarCompiler) -> None:
    constraint = constraint_of(compiler, GrammarKind.REGEX, "[ab]{3}-[0-9]{2}")
    assert re.fullmatch("[ab]{3}-[0-9]{2}", walk(constraint, 1))


def test_two_answers_do_not_share_their_place(compiler: GrammarCompiler) -> None:
    one, other = compiler.compile(Grammar(GrammarKind.REGEX, "xyz", "grammar"), 2)
    first = allowed(one)
    one.advance(first[0])
    assert allowed(other) == first
    assert allowed(one) != first


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (GrammarKind.JSON, '{"type": "cat"}'),
        (GrammarKind.JSON, "[1]"),
        (GrammarKind.JSON, '{"type": "string", "minLength": 5, "maxLength": 2}'),
        (GrammarKind.JSON, '{"$ref": "http://example.com/schema"}'),
        (GrammarKind.REGEX, "(a"),
    ],
)
def test_refused(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(Grammar(kind, text, "response_format"))
    assert caught.value.param == "response_format"
    assert "\n" not in caught.value.message


def test_a_token_outside_the_mask_ends_the_request_not_the_server(
    compiler: GrammarCompiler,
) -> None:
    constraint = constraint_of(compiler, GrammarKind.REGEX, "xyz")
    with pytest.raises(GenerationFailed):
        constraint.advance(TOKENIZER.convert_tokens_to_ids("q"))
