"""Every spelling of a grammar that clients use."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lorry.api.grammars import grammar_of
from lorry.constraint import GrammarKind
from lorry.errors import InvalidRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    "value",
    [
        {"type": "json", "value": SCHEMA},
        {"type": "json", "value": json.dumps(SCHEMA)},
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
        {"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}},
        {"type": "json_schema", "value": SCHEMA},
    ],
)
def test_json(value: dict[str, Any]) -> None:
    grammar = grammar_of(value, "grammar")
    assert grammar is not None
    assert grammar.kind is GrammarKind.JSON
    assert json.loads(grammar.text) == SCHEMA


def test_others() -> None:
    assert grammar_of(None, "grammar") is None
    assert grammar_of({"type": "text"}, "response_format") is None
    regex = grammar_of({"type": "regex", "value": "a+"}, "grammar")
    assert regex is not None and (regex.kind, regex.text) == (GrammarKind.REGEX, "a+")
    for value, kind, text in [
        ({"type": "choice", "value": ["a", "b"]}, GrammarKind.CHOICE, '["a", "b"]'),
        ({"type": "choice", "choice": ["a"]}, GrammarKind.CHOICE, '["a"]'),
        ({"type": "lark", "value": "x"}, GrammarKind.LARK, "x"),
        ({"type": "gbnf", "value": "x"}, GrammarKind.GBNF, "x"),
        ({"type": "grammar", "value": 'start: "a"'}, GrammarKind.LARK, 'start: "a"'),
        ({"type": "grammar", "grammar": 'root ::= "a"'}, GrammarKind.GBNF, 'root ::= "a"'),
        (
            {"type": "grammar", "syntax": "regex", "definition": "a+"},
            GrammarKind.REGEX,
            "a+",
        ),
    ]:
        found = grammar_of(value, "grammar")
        assert found is not None and (found.kind, found.text) == (kind, text)
    anything = grammar_of({"type": "json_object"}, "response_format")
    assert anything is not None and json.loads(anything.text) == {"type": "object"}


@pytest.mark.parametrize(
    "value",
    [
        {},
        "json",
        {"type": "cat", "value": "x"},
        {"type": "lark", "value": 3},
        {"type": "lark", "value": "x", "syntax": "lark"},
        {"type": "grammar", "value": "x", "syntax": "yacc"},
        {"type": "choice", "value": []},
        {"type": "choice", "value": "a"},
        {"type": "choice", "value": ["a", 3]},
        {"type": "choice", "value": ["a", ""]},
        {"type": 3},
        {"type": "json"},
        {"type": "json", "value": "{"},
        {"type": "json", "value": [1]},
        {"type": "json", "value": SCHEMA, "strict": True},
        {"type": "regex"},
        {"type": "regex", "value": {}},
        {"type": "json_schema"},
    ],
)
def test_refused(value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammar_of(value, "parameters.grammar")
    assert caught.value.message.startswith("parameters.grammar")
