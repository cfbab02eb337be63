"""Numbers that no training leaves and no step survives, found before an adapter exists.

A number can be finite where it is stored and overflow where it is used: in half precision, as
a product of two matrices, in a norm that squares. So an adapter's numbers, and what its pairs of
matrices can make of an input, have a bound that is the same on every base: the largest number
of half precision. Trained weights are thousands of times smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, isfinite
from typing import Final

import torch
from torch import Tensor

from lorry_adapters.lora.effects import Dora
from lorry_adapters.lora.expert_effects import AnyEffect, ExpertLora, RouterPair
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.replaced import EmbeddingDora, EmbeddingPair

LARGEST: Final = torch.finfo(torch.float16).max


def extreme(key: str, values: Tensor, *, places: bool = False) -> str | None:
    """What is wrong with the numbers of a tensor; None where nothing is. `places`: they are
    whole numbers that name places in a weight, however they are stored."""
    if not values.numel():
        return None
    low, high = (float(one) for one in torch.aminmax(values))
    if not (isfinite(low) and isfinite(high)):
        return f"{shown(key)} contains NaN or infinite numbers"
    largest = max(-low, high)
    if largest > LARGEST and not places:
        return (
            f"{shown(key)} holds a number of {largest:.4g} in magnitude; at most {LARGEST:g} is "
            "served, which trained weights do not come near"
        )
    return None


def too_strong(
    pairs: Mapping[str, LoraPair], effects: Mapping[str, Sequence[AnyEffect]]
) -> Iterator[str]:
    """Modules where an input of length 1 could get a delta of over LARGEST, or whose B, times
    the trained strength, does not fit in half precision. Of numbers that `extreme` let pass."""
    for module, a_ERI, b_EOR, scaling_E in _pairs(pairs, effects):
        strength_E = scaling_E.abs().float()
        lengths_E = _length(a_ERI.flatten(1)) * _length(b_EOR).amax(1)
        delta = float((strength_E * lengths_E).max())
        largest = float((strength_E * _length(b_EOR.flatten(1), ord=inf)).max())
        if max(delta, largest) > LARGEST:
            yield (
                f"{shown(module)}: alpha and the matrices together are too strong: an input of "
                f"length 1 can get a delta of {delta:.4g}, and B times alpha / r reaches "
                f"{largest:.4g}; at most {LARGEST:g} is served"
            )


def _length(vectors: Tensor, ord: float = 2) -> Tensor:
    """Of the last dimension, in fp32."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, ord, dim=-1, dtype=torch.float32)
    return lengths


def _pairs(
    pairs: Mapping[str, LoraPair], effects: Mapping[str, Sequence[AnyEffect]]
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """(module, A, B, strength), each with a dimension for experts in front."""
    for module, pair in pairs.items():
        yield module, *_single(pair.a_RI, pair.b_OR, pair.scaling)
    for module, mine in effects.items():
        for effect in mine:
            if isinstance(effect, Dora | RouterPair):
                yield module, *_single(effect.a_RI, effect.b_OR, effect.scaling)
            elif isinstance(effect, EmbeddingPair | EmbeddingDora):
                yield module, *_single(effect.a_RV, effect.b_HR, effect.scaling)
            elif isinstance(effect, ExpertLora):
                for name, stacked in effect.pairs.items():
                    for one in stacked:
                        yield f"{module}.{name}", one.a_ERI, one.b_EOR, one.scaling_E


def _single(a_RI: Tensor, b_OR: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    return a_RI[None], b_OR[None], torch.tensor([scaling])
