"""`grammar` and `response_format` in all their spellings, as one `Grammar`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lorry.core import Constraint
from lorry.engine.grammar import MAX_GRAMMAR, Grammar, GrammarCompiler, GrammarKind
from lorry.errors import InvalidRequest

_SPELLINGS = {
    "json": ("value", "schema"),
    "json_object": ("schema", "value"),
    "json_schema": ("json_schema", "value"),
    "regex": ("value",),
    "text": (),
}
"""The types, and the keys where clients put the schema or the expression."""


def grammar_of(value: object, param: str) -> Grammar | None:
    """What an answer must match; None where it may be anything.

        {"type": "json", "value": SCHEMA}                          TGI
        {"type": "regex", "value": "..."}                          TGI
        {"type": "json_object", "schema": SCHEMA}                  LoRAX; without: any object
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}} OpenAI
        {"type": "text"}                                           OpenAI

    Raises InvalidRequest.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise InvalidRequest(f'{param} must be an object with a "type"', param=param)
    kind: str = value["type"]
    if kind not in _SPELLINGS:
        raise InvalidRequest(
            f"{param}.type must be one of {', '.join(_SPELLINGS)}, not {kind[:40]!r}", param=param
        )
    keys = _SPELLINGS[kind]
    unknown = [key for key in value if key != "type" and key not in keys]
    if unknown:
        raise InvalidRequest(f"{param}: unknown field {unknown[0][:80]!r}", param=param)
    given = next((value[key] for key in keys if value.get(key) is not None), None)
    if kind == "text":
        return None
    if kind == "regex":
        if not isinstance(given, str):
            raise InvalidRequest(f"{param}.value must be a regular expression", param=param)
        return Grammar(GrammarKind.REGEX, given, param)
    if given is None and kind == "json_object":
        return Grammar(GrammarKind.JSON, '{"type":"object"}', param)
    return Grammar(GrammarKind.JSON, _schema(given, kind, f"{param}.{keys[0]}", param), param)


async def compiled(
    compiler: GrammarCompiler, grammar: Grammar | None, count: int
) -> Sequence[Constraint | None]:
    """One for each of `count` answers: a constraint keeps its place in one."""
    if grammar is None:
        return [None] * count
    return await compiler.constraints(grammar, count)


def schema_text(schema: object, param: str) -> str:
    """A JSON schema as text. Raises InvalidRequest."""
    try:
        return json.dumps(schema)
    except RecursionError as error:
        raise InvalidRequest(
            f"{param}: the JSON schema is nested too deeply", param=param
        ) from error


def _schema(given: Any, kind: str, where: str, param: str) -> str:
    if kind == "json_schema" and isinstance(given, dict) and "schema" in given:
        # OpenAI wraps it with a name and a `strict` that is always on here.
        given, where = given["schema"], f"{where}.schema"
    if isinstance(given, str):
        if len(given) > MAX_GRAMMAR:
            raise InvalidRequest(
                f"{where} has {len(given)} characters, the most is {MAX_GRAMMAR}", param=param
            )
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{where} is not JSON: {error}", param=param) from error
    if not isinstance(given, dict):
        raise InvalidRequest(f"{where} must be a JSON schema, an object", param=param)
    return schema_text(given, param)
