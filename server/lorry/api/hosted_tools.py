"""Tools that run on a vendor's own machines.

Clients offer them without being asked (Codex its web search), and a model that does not see such a
tool simply answers without it. So they are left out, and the answer's header names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = (
    "web_search",
    "web_fetch",
    "file_search",
    "code_interpreter",
    "code_execution",
    "image_generation",
    "tool_search",
)
"""Starts of their types; a date or a variant may follow."""


def is_hosted(tool: Mapping[str, Any]) -> bool:
    kind = tool.get("type")
    return isinstance(kind, str) and kind.startswith(_KINDS)


def places(tools: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Return the paths of the tools that are left out, for the header."""
    return [f"tools.{tool['type']}" for tool in tools or () if is_hosted(tool)]
