"""Detects parts of an adapter that have no effect or cannot be applied.

An adapter saved before the first step of training, or with a strength of zero in its config
(`lora_alpha` 0), adds nothing to any base: it would be the base under another name. No text
reaches the parts of an adapter for a vision or audio model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from torch import Tensor

from lorry_adapters.errors import Problem, Remedy
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.bottleneck import Bottleneck, Remembered
from lorry_adapters.lora.effects import InputGain, Kronecker, OutputGain, PairBias, Vera
from lorry_adapters.lora.expert_effects import AnyEffect, ExpertLora, RouterPair
from lorry_adapters.lora.parts import LoraPair, Parts
from lorry_adapters.lora.peft_probe import Measured
from lorry_adapters.lora.problems import some
from lorry_adapters.lora.replaced import EmbeddingPair, OwnModule
from lorry_adapters.lora.sparse import Sparse
from lorry_adapters.lora.spectral import Turned
from lorry_adapters.lora.spelling import is_beside

_LEAST: Final = 2.0**-126
"""The smallest scaling that float32 represents with full precision."""


def why_idle(parts: Parts) -> str | None:
    """Return the reason why `parts` change nothing, or None if they may change something."""
    if parts.prompt is not None or parts.score is not None:
        return None
    every = [*parts.pairs.values(), *(one for mine in parts.effects.values() for one in mine)]
    strengths = [strength for one in every for strength in _strengths(one)]
    if strengths and not any(map(_is_strong, strengths)):
        if not all(_adds_nothing(one) or _is_beside(one) for one in every):
            return None
        return (
            "lora_alpha, alpha, scaling or alpha_pattern in its config make its strength zero in "
            "every module: restore the values that it was trained with"
        )
    if not all(map(_adds_nothing, every)):
        return None
    if parts.pairs and len(every) == len(parts.pairs):
        return "every lora_B is zero, as before training"
    return "every number that it adds is zero, as before training"


def leave_out_unseen(parts: Parts, layout: BaseLayout, problems: list[str]) -> list[str]:
    """Remove the parts that no text reaches from `parts`. Return warnings for people.

    An adapter trained on text whose targets match modules of other parts too (`q_proj`) has
    unchanged pairs for them, which are removed. One trained on images has pairs that would act
    there; these are added to `problems`.
    """
    unseen = [name for name in (*parts.pairs, *parts.effects) if is_beside(layout, name)]
    if not unseen:
        return []
    acting: list[str] = []
    idle: list[str] = []
    for name in dict.fromkeys(unseen):
        pair = parts.pairs.pop(name, None)
        mine = [*([] if pair is None else [pair]), *parts.effects.pop(name, [])]
        (idle if all(map(_adds_nothing, mine)) else acting).append(name)
    if acting:
        problems.append(
            Problem(
                "no text reaches these modules of the base, but the adapter changes them "
                f"({len(acting)}): {some(acting)}. That part of it would have no effect: make an "
                "adapter of its text part, or train it with target_modules within "
                f"{layout.text} only",
                Remedy.KEEP_TEXT,
            )
        )
    if not idle:
        return []
    return [
        "no text reaches these modules of the base, so the adapter's tensors for them "
        f"({len(idle)}) are left out; they were not trained and add nothing: {some(idle)}"
    ]


def why_apart(parts: Parts, layout: BaseLayout) -> list[str]:
    """Return problems with modules that no adapter can change."""
    names = [name for name in (*parts.pairs, *parts.effects) if name in layout.apart]
    if not names:
        return []
    return [
        "the adapter changes modules that do not receive a step's tokens one by one, which is not "
        f"served ({len(names)}): {some(names)}"
    ]


def _strengths(one: LoraPair | AnyEffect) -> Iterator[float]:
    """Yield the strengths that come from the config."""
    if isinstance(one, LoraPair | EmbeddingPair | PairBias | Kronecker | RouterPair):
        yield one.scaling
    elif isinstance(one, ExpertLora):
        for mine in one.pairs.values():
            for pairs in mine:
                yield float(pairs.scaling_E.abs().max())
    elif isinstance(one, Bottleneck):
        yield float(one.strength.abs().max())


def _is_strong(strength: float) -> bool:
    return abs(strength) >= _LEAST


def _adds_nothing(one: LoraPair | AnyEffect) -> bool:
    if not all(map(_is_strong, _strengths(one))):
        return True
    match one:
        case LoraPair():
            return _is_zero(one.a_RI) or _is_zero(one.b_OR)
        case RouterPair():
            return _is_zero(one.a_RI) or _is_zero(one.b_OR)
        case EmbeddingPair():
            return _is_zero(one.a_RV) or _is_zero(one.b_HR)
        case ExpertLora():
            every = (pairs for mine in one.pairs.values() for pairs in mine)
            return all(_is_zero(pairs.a_ERI) or _is_zero(pairs.b_EOR) for pairs in every)
        case PairBias():
            return _is_zero(one.bias_O)
        case Kronecker():
            return _is_zero(one.w1_ac) or _is_zero(one.w2_bd)
        case Vera():
            return _is_zero(one.d_R) or _is_zero(one.b_O)
        case InputGain():
            return _is_zero(one.gain_I.float() - 1)
        case OutputGain():
            return _is_zero(one.gain_O.float() - 1)
        case Sparse():
            return _is_zero(one.values_N)
        case Turned():
            return _is_zero(one.turn_RR)
        case Bottleneck():
            return _is_zero(one.up_HR) and _is_zero(one.up_H)
        case Remembered():
            return True
        case Measured():
            return one.changes_nothing()
    # DoRA's norm, biases, tables and spectra depend on numbers of the base.
    return False


def _is_beside(one: LoraPair | AnyEffect) -> bool:
    """Return whether this is an embedding table that PEFT saved on its own beside a targeted
    one."""
    return isinstance(one, OwnModule) and not one.asked


def _is_zero(tensor: Tensor) -> bool:
    return not tensor.any()
