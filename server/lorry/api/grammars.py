"""`grammar` and `response_format` in all their forms, as one `Grammar`."""

from __future__ import annotations

import json
import re
from typing import Any

from lorry.api.mistakes import described
from lorry.constraint import MAX_GRAMMAR, Grammar, GrammarKind
from lorry.errors import InvalidRequest

_SPELLINGS = {
    "json": ("value", "schema"),
    "json_object": ("schema", "value"),
    "json_schema": ("json_schema", "value"),
    "regex": ("value", "regex"),
    "choice": ("value", "choice"),
    "grammar": ("value", "grammar", "definition"),
    "lark": ("value",),
    "gbnf": ("value",),
    "text": (),
}
"""The types, with the keys under which clients put the schema, the expression or the grammar."""

_SYNTAXES = {
    "lark": GrammarKind.LARK,
    "gbnf": GrammarKind.GBNF,
    "regex": GrammarKind.REGEX,
}

_GBNF = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
"""A rule in GBNF; a rule in Lark's notation has one colon."""

MAX_CHOICES = 10_000


def grammar_of(value: object, param: str) -> Grammar | None:
    """Return the grammar that an answer must match, or None if it may be anything.

        {"type": "json", "value": SCHEMA}                          TGI
        {"type": "regex", "value": "..."}                          TGI
        {"type": "json_object", "schema": SCHEMA}                  LoRAX; without: any object
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}} OpenAI
        {"type": "text"}                                           OpenAI
        {"type": "choice", "value": ["...", "..."]}                one of these texts
        {"type": "grammar", "value": "..."}                        in Lark's notation or GBNF
        {"type": "lark", "value": "..."}, {"type": "gbnf", "value": "..."}

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
    known = {"type", *keys, *(("syntax",) if kind == "grammar" else ())}
    unknown = [key for key in value if key not in known]
    if unknown:
        raise InvalidRequest(f"{param}: unknown field {unknown[0][:80]!r}", param=param)
    key = next((key for key in keys if value.get(key) is not None), keys[0] if keys else "")
    given, where = value.get(key), f"{param}.{key}"
    if kind == "text":
        return None
    if kind == "choice":
        return choice(given, where, param)
    if kind == "regex":
        return expression(given, where, param)
    if kind in ("grammar", "lark", "gbnf"):
        syntax = value.get("syntax") if kind == "grammar" else kind
        return written(given, where, param, syntax=syntax)
    if given is None and kind == "json_object":
        return any_object(param)
    return Grammar(GrammarKind.JSON, _schema(given, kind, where, param), param)


def any_object(param: str) -> Grammar:
    return Grammar(GrammarKind.JSON, '{"type":"object"}', param)


def schema(given: object, where: str, param: str) -> Grammar:
    """Return a grammar from `given`, a JSON schema or one as a string. Raises InvalidRequest."""
    return Grammar(GrammarKind.JSON, _schema(given, "json", where, param), param)


def expression(given: object, where: str, param: str) -> Grammar:
    """Return a grammar from a regular expression. Raises InvalidRequest."""
    return Grammar(GrammarKind.REGEX, _text(given, where, "a regular expression", param), param)


def choice(given: object, where: str, param: str) -> Grammar:
    """Return a grammar of several strings. Raises InvalidRequest."""
    if not isinstance(given, list) or not 0 < len(given) <= MAX_CHOICES:
        raise InvalidRequest(f"{where} must be a list of 1 to {MAX_CHOICES} strings", param=param)
    for index, one in enumerate(given):
        if not isinstance(one, str) or not one:
            raise InvalidRequest(f"{where}[{index}] must be a string, and not empty", param=param)
    return Grammar(GrammarKind.CHOICE, json.dumps(given), param)


def written(given: object, where: str, param: str, *, syntax: object = None) -> Grammar:
    """Return a grammar in the notation `syntax`, or if that is None, in the one that its text
    shows. Raises InvalidRequest."""
    text = _text(given, where, "a grammar, in Lark's notation or GBNF", param)
    if syntax is None:
        syntax = "gbnf" if _GBNF.search(text) else "lark"
    if not isinstance(syntax, str) or syntax not in _SYNTAXES:
        raise InvalidRequest(
            f"{param}.syntax must be one of {', '.join(_SYNTAXES)}, not {described(syntax)}",
            param=param,
        )
    return Grammar(_SYNTAXES[syntax], text, param)


def schema_text(schema: object, param: str) -> str:
    """Return a JSON schema as a string. Raises InvalidRequest."""
    try:
        return json.dumps(schema)
    except RecursionError as error:
        raise InvalidRequest(
            f"{param}: the JSON schema is nested too deeply", param=param
        ) from error


def _text(given: object, where: str, what: str, param: str) -> str:
    if not isinstance(given, str):
        raise InvalidRequest(f"{where} must be {what}", param=param)
    return given


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
        raise InvalidRequest(f"{where} must be a JSON schema, which is an object", param=param)
    return schema_text(given, param)
