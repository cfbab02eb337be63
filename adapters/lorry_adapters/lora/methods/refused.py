"""PEFT's methods that are not served because they are not a delta of a module's own output."""

from __future__ import annotations

from typing import Final

from lorry_adapters.errors import Problem, Remedy
from lorry_adapters.lora.methods.method import RefusedMethod

POLY: Final = RefusedMethod(
    "POLY",
    ("poly_",),
    Problem(
        "it mixes its matrices by the task of a request, and requests have none; train one "
        "LoRA for each task",
        Remedy.KEEP_TASK,
    ),
)
REFUSED: Final = (
    POLY,
    RefusedMethod(
        "ADAMSS",
        ("adamss_",),
        "the positions of its numbers are not in its file: they come from a clustering of the "
        "base's weights that depends on its library's version; train a LoRA or an OSF adapter",
    ),
    RefusedMethod(
        "ADAPTION_PROMPT",
        ("adaption_prompt_",),
        "it changes how layers attend, which no change of a module can do; train prefix tuning "
        "(PREFIX_TUNING), which works in the same place",
    ),
    RefusedMethod(
        "BONE",
        ("bone_",),
        Problem("it is MiSS under its name before PEFT 0.19", Remedy.CONVERT),
        now="MISS",
    ),
    RefusedMethod(
        "LILY",
        ("lily_",),
        "it weights its matrices by the mean over all tokens of a batch, so a token's answer "
        "would depend on later tokens and on other requests; train a LoRA",
    ),
    RefusedMethod(
        "SHADOW",
        ("shadow_",),
        "it runs a second model beside the base; train a LoRA",
    ),
    RefusedMethod(
        "XLORA",
        ("xlora_",),
        "it routes between other adapters, which are not in its file; upload those, and name "
        "several of them with their scales in a request",
    ),
)
