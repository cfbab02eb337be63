"""The tools that a request may call, and the grammar that forces a call.

A forced call (`tool_choice` "required" or a function) is made by a grammar, so it works
with every base. A free one ("auto") is found in the text (`lorry.api.calls`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorry.api.calls.notation import Notation, Offered
from lorry.api.calls.reader import Reader, forced, free, text_only
from lorry.api.grammars import schema_text
from lorry.api.tool_schema import one_call
from lorry.constraint import Grammar, GrammarKind
from lorry.errors import InvalidRequest, UnsupportedParameter

MAX_CALLS = 16
"""The most calls in a forced answer with several."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The resolved tools of a request."""

    shown: list[dict[str, Any]] | None
    """For the prompt; None if there are none or none may be called."""
    grammar: Grammar | None = None
    """Forces the answer to be a call, or a list of calls."""
    name: str | None = None
    """The only function, which must be called: the answer is its arguments."""
    several: bool = True
    """Whether an answer may have more than one call."""

    @property
    def forced(self) -> bool:
        return self.grammar is not None

    @property
    def free(self) -> bool:
        """True if the model may call but need not."""
        return self.shown is not None and not self.forced

    def reader(self, notation: Notation) -> Reader:
        """Return the reader of one answer. `notation` is the base's own."""
        if self.shown is None:
            return Reader(text_only)
        offered = Offered(self.shown)
        readings = forced(offered, self.name) if self.forced else free(notation, offered)
        return Reader(readings, several=self.several)


def tools_of(
    tools: Sequence[Mapping[str, Any]] | None, choice: object, *, parallel: bool | None = None
) -> Tools:
    """`parallel` is `parallel_tool_calls`. If the model is free to call, None and true allow any
    number of calls. A forced answer has one call, or several if `parallel` is true.

    Raises InvalidRequest, UnsupportedParameter.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice without tools; send both", param="tool_choice")
        return Tools(None)
    schemas = {_name(tool, f"tools[{index}]"): tool for index, tool in enumerate(tools)}
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed, choice = _allowed(choice, schemas)
        schemas = {name: schemas[name] for name in schemas if name in allowed}
        if not schemas:
            return Tools(None)
    shown = [dict(tool) for tool in schemas.values()]
    several = parallel is not False
    if choice in (None, "auto"):
        return Tools(shown, several=several)
    if choice == "none":
        return Tools(None)
    parameters = {name: _parameters(tool) for name, tool in schemas.items()}
    if choice == "required":
        try:
            schema = one_call(parameters)
        except RecursionError as error:
            raise InvalidRequest(
                "tools: a JSON schema is nested too deeply", param="tools"
            ) from error
        if parallel:
            definitions = schema.pop("$defs")
            several_calls = {"type": "array", "items": schema, "minItems": 1, "maxItems": MAX_CALLS}
            schema = {"$defs": definitions, **several_calls}
        return Tools(shown, _grammar(schema), several=bool(parallel))
    wanted = _known(choice, schemas)
    if isinstance(choice, dict) and choice.get("type") == "custom":
        raise UnsupportedParameter(
            'tool_choice: the type "custom" is not served; name a function', param="tool_choice"
        )
    if wanted is None:
        raise InvalidRequest(
            'tool_choice must be "none", "auto", "required", a function of tools: '
            '{"type": "function", "function": {"name": ...}}, or some of them: {"type": '
            '"allowed_tools", "allowed_tools": {"mode": "auto", "tools": [...]}}',
            param="tool_choice",
        )
    return Tools(shown, _grammar(parameters[wanted]), wanted, several=False)


def _name(tool: Mapping[str, Any], where: str) -> str:
    """Return the name of a tool's function."""
    function = tool.get("function")
    if tool.get("type") == "custom":
        raise UnsupportedParameter(
            f'{where}: tools of type "custom" are not served; make it a function', param="tools"
        )
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise InvalidRequest(
            f'{where} must be {{"type": "function", "function": {{...}}}}', param="tools"
        )
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where}.function.name must be a string", param="tools")
    if schema is not None and not isinstance(schema, dict):
        raise InvalidRequest(f"{where}.function.parameters must be a JSON schema", param="tools")
    return name


def _parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function's parameters; a function without any takes none."""
    return tool["function"].get("parameters") or {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


def _allowed(choice: Mapping[str, Any], known: Mapping[str, object]) -> tuple[set[str], object]:
    """Return the names that `allowed_tools` allows, and its mode. The chat route puts both in an
    object of their own, `/v1/responses` beside the type."""
    given = choice.get("allowed_tools", choice)
    tools = given.get("tools") if isinstance(given, dict) else None
    mode = given.get("mode", "auto") if isinstance(given, dict) else None
    if not isinstance(tools, list) or mode not in ("auto", "required"):
        raise InvalidRequest(
            'tool_choice.allowed_tools must have a mode, "auto" or "required", and tools, a list '
            "of functions",
            param="tool_choice",
        )
    names: set[str] = set()
    for index, tool in enumerate(tools):
        name = _known(tool, known)
        if name is None:
            raise InvalidRequest(
                f"tool_choice.allowed_tools.tools[{index}] is not a function of tools",
                param="tool_choice",
            )
        names.add(name)
    if mode == "required" and not names:
        raise InvalidRequest(
            "tool_choice.allowed_tools requires a call and allows none", param="tool_choice"
        )
    return names, mode


def _known(choice: object, known: Mapping[str, object]) -> str | None:
    """Return the name of a chosen function in the form of either route or TGI's clients, which send
    the name alone; None if no function has it."""
    if isinstance(choice, str):
        return choice if choice in known else None
    function = choice.get("function", choice) if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) and name in known else None


def _grammar(schema: Mapping[str, Any]) -> Grammar:
    return Grammar(GrammarKind.JSON, schema_text(schema, "tools"), "tools")
