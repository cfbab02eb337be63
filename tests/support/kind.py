"""A kind of adapter: how its PEFT config looks for a family of tiny models, and how loud random
weights for it are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from peft import PeftConfig

from support.families import Family
from support.tokenizer import build_tokenizer

PROMPT = "The lorry waited at the gate with its lights on."
INVOCATION = " at the gate"
"""A part of the prompt, and of its tokens, that calls an activated LoRA."""
VIRTUAL = 5
"""Virtual tokens of the kinds that have some."""


class Strength(Enum):
    """What a scale other than 1 means."""

    SCALING = "what PEFT keeps in a layer's `scaling` is multiplied"
    DISTANCE = "what a layer's answer is away from the base's is multiplied"
    NONE = "nothing: it is refused"


Make = Callable[[Family], Mapping[str, Any]]
"""Fields of a kind's config, for a family."""


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    group: str
    """Where it stands in the table: a heading."""
    config: Callable[[Family], PeftConfig]
    noise: float = 0.3
    """Standard deviation of what is added to every trained number; LoRA's own matrices are
    drawn to a loudness instead, as `peft_made.fill` has it."""
    strength: Strength = Strength.NONE
    fits: Callable[[Family], bool] = lambda f: True
    tied_too: bool = False
    """It reaches for the embeddings or the head, so that a base which ties them matters."""
    everywhere: bool = False
    """Tried on every base in every run, not only in the whole matrix."""
    converted: bool = False
    """Saved relative to its own start, as a plain LoRA of twice the rank."""


@cache
def invocation_tokens() -> tuple[int, ...]:
    ids = build_tokenizer(add_bos=False)(INVOCATION).input_ids
    return tuple(ids)


@cache
def trained_tokens() -> tuple[int, ...]:
    """Rows of the embeddings that are trained alone; most of them stand in the prompt."""
    ids = build_tokenizer(add_bos=False)(PROMPT).input_ids
    return tuple(sorted({*ids[2:12:2], 300, 301}))
