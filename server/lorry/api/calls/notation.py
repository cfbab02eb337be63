"""The definition of a notation of calls, and the functions that may be called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorry.api.calls.source import Reading, Source


class Offered:
    """The functions of a request."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            function = tool.get("function", tool)
            properties = (function.get("parameters") or {}).get("properties")
            self._parameters[function.get("name", "")] = (
                properties if isinstance(properties, Mapping) else {}
            )

    def knows(self, name: str) -> bool:
        return name in self._parameters

    def parameters(self, name: str) -> list[str]:
        """Return the names of a function's parameters, in order."""
        return list(self._parameters.get(name, ()))

    def is_text(self, name: str, parameter: str) -> bool:
        """Return whether the schema allows only strings for this parameter."""
        schema = self._parameters.get(name, {}).get(parameter)
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        return kind == "string" or kind == ["string"]


Read = Callable[[Source, Offered], Reading[bool]]
"""Reads calls. Returns False if the text taken since the last call is not one."""


@dataclass(frozen=True, slots=True)
class Notation:
    name: str
    openers: Mapping[str, Read]
    """Marks before a call, anywhere in the text, with the reader for what follows. No mark is the
    start of another."""
    start: Read | None = None
    """Reads calls without a mark, which are the whole answer."""
    marks: tuple[str, ...] = ()
    """Special tokens of the notation, which would otherwise be hidden."""
