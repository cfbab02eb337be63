"""Which notation a base writes calls in."""

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
"""What a family's templates have in them, the surest signs first."""


def notation_of(template: str) -> Notation:
    """What a template asks for, by the marks in it; Hermes's, which Lorry's own prompt asks for,
    where it has none."""
    return next((notation for sign, notation in _SIGNS if sign in template), HERMES)
