"""Grammars: what a random walk along the masks writes is what the grammar says."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

import pytest

from lorry.constraint import Grammar, GrammarKind
from lorry.core import Constraint
from lorry.engine.grammar import GrammarCompiler
from lorry.errors import GenerationFailed, InvalidRequest
from support.tokenizer import EOS, VOCAB_SIZE, build_tokenizer

TOKENIZER = build_tokenizer(add_bos=False)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    one = GrammarCompiler(TOKENIZER.backend_tokenizer, frozenset({EOS}))
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


def matches(constraint: Constraint, text: str) -> bool:
    """Whether the grammar takes `text` as a whole answer."""
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        if token not in allowed(constraint):
            return False
        constraint.advance(token)
    return EOS in allowed(constraint)


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


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}


@pytest.mark.parametrize(
    ("text", "closed", "letter"),
    [
        ('{"name": "Al", "age": 3}', True, True),
        ('{"name":"Al"}', True, True),
        ('{"name": "Al", "pet": "cat"}', False, True),
        ('{\n  "name": "Al"\n}', False, True),
        ('{"name":  "Al"}', False, True),
        ('{"age": 3}', False, False),
    ],
)
def test_objects_are_closed_and_have_little_space_in_them(
    compiler: GrammarCompiler, text: str, closed: bool, letter: bool
) -> None:
    schema = json.dumps(PERSON)
    assert matches(constraint_of(compiler, GrammarKind.JSON, schema), text) is closed
    (one,) = compiler.compile(Grammar(GrammarKind.JSON, schema, "grammar", closed=False))
    assert matches(one, text) is letter


def test_a_server_may_take_schemas_by_the_letter() -> None:
    by_letter = GrammarCompiler(TOKENIZER.backend_tokenizer, frozenset({EOS}), closed=False)
    try:
        constraint = constraint_of(by_letter, GrammarKind.JSON, json.dumps(PERSON))
        assert matches(constraint, '{"name": "Al", "pet": "cat"}')
    finally:
        by_letter.close()


def test_the_space_of_a_schema_is_its_sender_s(compiler: GrammarCompiler) -> None:
    schema = json.dumps(PERSON)
    none = Grammar(GrammarKind.JSON, schema, "grammar", whitespace="")
    much = Grammar(GrammarKind.JSON, schema, "grammar", whitespace=r"[ \n]{0,9}")
    for grammar, text, taken in [
        (none, '{"name":"Al"}', True),
        (none, '{"name": "Al"}', False),
        (much, '{\n   "name": "Al"\n}', True),
    ]:
        (constraint,) = compiler.compile(grammar)
        assert matches(constraint, text) is taken, (grammar, text)


def test_what_is_said_of_one_object_in_several_places_counts_together(
    compiler: GrammarCompiler,
) -> None:
    text = {"type": "string"}
    schema = {
        "$defs": {"Base": {"type": "object", "properties": {"id": text}, "required": ["id"]}},
        "$ref": "#/$defs/Base",
        "properties": {"name": text},
        "anyOf": [{"required": ["name"]}, {"properties": {"nick": text}, "required": ["nick"]}],
    }
    for answer, taken in [
        ('{"name": "a", "id": "b"}', True),
        ('{"id": "b", "nick": "c"}', True),
        ('{"name": "a"}', False),
        ('{"id": "b"}', False),
        ('{"id": "b", "name": "a", "pet": "d"}', False),
    ]:
        found = [
            matches(constraint_of(compiler, GrammarKind.JSON, json.dumps(schema)), order)
            for order in (answer, json.dumps(dict(reversed(json.loads(answer).items()))))
        ]
        assert any(found) is taken, answer


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "format": "path"}, '"a/b"'),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, '["a", "a"]'),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "1"),
        (PERSON | {"discriminator": {"propertyName": "name"}, "nullable": True}, '{"name": "a"}'),
    ],
)
def test_what_asserts_nothing_here_is_taken(
    compiler: GrammarCompiler, schema: object, text: str
) -> None:
    assert matches(constraint_of(compiler, GrammarKind.JSON, json.dumps(schema)), text)


@pytest.mark.parametrize(
    "text", ["a", "b c", 'a"b', "a.b", "[x]", "a\nb", "a|b", "", "(", "\\d", "{2}"]
)
def test_choices_are_taken_as_they_stand(compiler: GrammarCompiler, text: str) -> None:
    choices = json.dumps(["something else", text])
    assert matches(constraint_of(compiler, GrammarKind.CHOICE, choices), text)
    assert not matches(constraint_of(compiler, GrammarKind.CHOICE, choices), text + "a")


SUM = {
    GrammarKind.LARK: """start: term ("+" term)*
term: NUMBER | "(" start ")"
NUMBER: /[0-9]+/
""",
    GrammarKind.GBNF: """# sums
root ::= term ("+" term)*
term ::= [0-9]+ | "(" root ")"
""",
}


@pytest.mark.parametrize("kind", SUM)
@pytest.mark.parametrize(
    ("text", "taken"), [("1+22", True), ("(1+2)+3", True), ("1+", False), ("a", False)]
)
def test_a_grammar_in_either_notation(
    compiler: GrammarCompiler, kind: GrammarKind, text: str, taken: bool
) -> None:
    assert matches(constraint_of(compiler, kind, SUM[kind]), text) is taken


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= [a-z]* "x"', "abx"),
        (r'root ::= "\u0041" [\u0042-\u0043]', "AC"),
        (r'root ::= "\x41\n" [^/]', "A\nb"),
        ('root ::= "a" root | "b"', "aab"),
        ('root ::= item{2} # two\nitem ::= "- " [a-z]+ "\\n"', "- a\n- bc\n"),
        ('inner-root ::= "b"\nroot ::= "a" inner-root', "ab"),
    ],
)
def test_gbnf(compiler: GrammarCompiler, grammar: str, text: str) -> None:
    assert matches(constraint_of(compiler, GrammarKind.GBNF, grammar), text)


def test_an_object_with_grammars_in_it_is_no_lark(compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequest):
        constraint_of(compiler, GrammarKind.LARK, '{"grammars": [{"json_schema": {}}]}')
