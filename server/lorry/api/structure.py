"""The format that an answer of OpenAI's routes must match, from OpenAI's fields or vLLM's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorry.api.grammars import any_object, choice, expression, grammar_of, schema, written
from lorry.api.mistakes import described
from lorry.api.openai_schema import SharedBody
from lorry.constraint import Grammar, GrammarKind
from lorry.errors import InvalidRequest, UnsupportedParameter

_KINDS = ("json", "regex", "choice", "grammar", "json_object")

_SWITCHES = ("disable_any_whitespace", "disable_additional_properties")

_IDLE = ("disable_fallback", "backend", "_backend", "_backend_was_auto")
"""Fields of `structured_outputs` that choose vLLM's implementation."""


def grammar_asked(body: SharedBody) -> Grammar | None:
    """Return the grammar, or None if there is none. Raises InvalidRequest, UnsupportedParameter."""
    asked = [
        grammar_of(body.response_format, "response_format"),
        _structured_outputs(body.structured_outputs),
        *_guided(body),
    ]
    given = [one for one in asked if one is not None]
    if len(given) > 1:
        names = " and ".join(one.param for one in given)
        raise InvalidRequest(f"{names} each give a format; give one", param=given[1].param)
    return given[0] if given else None


def _guided(body: SharedBody) -> list[Grammar | None]:
    """Read vLLM's older fields."""
    read = {
        "guided_json": schema,
        "guided_regex": expression,
        "guided_choice": choice,
        "guided_grammar": written,
    }
    made: list[Grammar | None] = []
    for name, of in read.items():
        value = getattr(body, name)
        grammar = None if value is None else of(value, name, name)
        if grammar is not None and grammar.kind is GrammarKind.JSON:
            grammar = replace(grammar, whitespace=body.guided_whitespace_pattern)
        made.append(grammar)
    return made


def _structured_outputs(given: Mapping[str, Any] | None) -> Grammar | None:
    """Read vLLM's newer field: an object with one of `_KINDS`."""
    param = "structured_outputs"
    # A switch that is off requests nothing, and neither does null.
    asked = {key: value for key, value in (given or {}).items() if value not in (None, False)}
    if "structural_tag" in asked:
        raise UnsupportedParameter(
            f"{param}.structural_tag is not served; describe the whole answer with {param}.grammar",
            param=param,
        )
    unknown = [
        key for key in asked if key not in (*_KINDS, *_SWITCHES, *_IDLE, "whitespace_pattern")
    ]
    if unknown:
        raise InvalidRequest(f"{param}: unknown field {unknown[0][:80]!r}", param=param)
    kinds = [key for key in _KINDS if key in asked]
    if len(kinds) != 1:
        if not given or (set(given) <= {"json_object", *_SWITCHES, *_IDLE} and not kinds):
            return None
        raise InvalidRequest(
            f"{param} must have one of {', '.join(_KINDS)}, not {' and '.join(kinds) or 'none'}",
            param=param,
        )
    (kind,) = kinds
    value, where = asked[kind], f"{param}.{kind}"
    if kind == "regex":
        return expression(value, where, param)
    if kind == "choice":
        return choice(value, where, param)
    if kind == "grammar":
        return written(value, where, param)
    return _of_json(value, where, param, asked, any_one=kind == "json_object")


def _of_json(
    value: object, where: str, param: str, asked: Mapping[str, Any], *, any_one: bool
) -> Grammar:
    if any_one and value is not True:
        raise InvalidRequest(f"{where} must be true or false, not {described(value)}", param=param)
    space = asked.get("whitespace_pattern")
    if space is not None and not isinstance(space, str):
        raise InvalidRequest(
            f"{param}.whitespace_pattern must be a regular expression", param=param
        )
    for switch in _SWITCHES:
        if asked.get(switch, False) not in (True, False):
            raise InvalidRequest(f"{param}.{switch} must be true or false", param=param)
    return replace(
        any_object(param) if any_one else schema(value, where, param),
        closed=True if "disable_additional_properties" in asked else None,
        whitespace="" if "disable_any_whitespace" in asked else space,
    )
