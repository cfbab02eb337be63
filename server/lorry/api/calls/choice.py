"""Chooses the notation in which a base writes calls."""

from __future__ import annotations

from lorry.api.calls.gemma import GEMMA
from lorry.api.calls.granite import GRANITE
from lorry.api.calls.hermes import HERMES
from lorry.api.calls.llama import LLAMA, PYTHONIC
from lorry.api.calls.mistral import MISTRAL
from lorry.api.calls.notation import Notation
from lorry.api.calls.phi import PHI
from lorry.api.calls.plain import JSON
from lorry.api.calls.qwen import QWEN

NOTATIONS = {
    one.name: one for one in (HERMES, LLAMA, PYTHONIC, MISTRAL, QWEN, PHI, GRANITE, GEMMA, JSON)
}

_SIGNS = (
    ("[TOOL_CALLS]", MISTRAL),
    ("<start_function_call>", GEMMA),
    ("<|tool_call>", GEMMA),
    ("<start_of_turn>", GEMMA),
    ("<|python_start|>", PYTHONIC),
    ("<|python_tag|>", LLAMA),
    ("<|start_header_id|>", LLAMA),
    ("<|start_of_role|>", GRANITE),
    ("<|/tool|>", PHI),
    ("<|/tool_call|>", PHI),
    ("functools", PHI),
    ("<function=", QWEN),
)
"""Marks in the templates of a family, the most reliable first."""


def notation_of(template: str) -> Notation:
    """Return the notation whose marks a template contains. Without any, return Hermes', which
    Lorry's own prompt asks for."""
    return next((notation for sign, notation in _SIGNS if sign in template), HERMES)
