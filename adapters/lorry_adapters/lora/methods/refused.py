"""PEFT's methods that are not served, as they are not a delta of a module's own output."""

from __future__ import annotations

from typing import Final

from lorry_adapters.errors import Problem, Remedy
from lorry_adapters.lora.methods.method import RefusedMethod

POLY: Final = RefusedMethod(
    "POLY",
    ("poly_",),
    Problem(
        "it mixes its matrices by the task of a request, and requests have none; make a LoRA "
        "of each task",
        Remedy.KEEP_TASK,
    ),
)
REFUSED: Final = (
    POLY,
    RefusedMethod(
        "ADAMSS",
        ("adamss_",),
        "where its numbers belong is not in its file, but in a clustering of the base's "
        "weights that other versions of its library make otherwise; train a LoRA or an OSF adapter",
    ),
    RefusedMethod(
        "ADAPTION_PROMPT",
        ("adaption_prompt_",),
        "it changes how layers attend, which no change of a module does; train "
        "prefix tuning (PREFIX_TUNING), which reaches the same place",
    ),
    RefusedMethod(
        "BONE",
        ("bone_",),
        Problem("it is MiSS under its name of before PEFT 0.19", Remedy.CONVERT),
        now="MISS",
    ),
    RefusedMethod(
        "LILY",
        ("lily_",),
        "it weighs its matrices by the mean over all tokens of a batch, so that a token's "
        "answer would depend on those after it and on other requests; train a LoRA",
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
        "several with their scales in a request",
    ),
)
