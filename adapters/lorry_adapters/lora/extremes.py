"""Refuses numbers that training never produces and that would overflow in a step.

A number can be finite in the file and overflow in use: in half precision, in a product of two
matrices, in a norm that squares. So an adapter's numbers, and the largest output of its pairs of
matrices, have a bound that is the same on every base: the largest number of half precision.
Trained weights are thousands of times smaller.
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
    """Return the problem with the numbers of a tensor, or None. `places`: they are indices into a
    weight, whatever their dtype."""
    if not values.numel():
        return None
    low, high = (float(one) for one in torch.aminmax(values))
    if not (isfinite(low) and isfinite(high)):
        return f"{shown(key)} contains NaN or infinite numbers"
    largest = max(-low, high)
    if largest > LARGEST and not places:
        return (
            f"{shown(key)} contains a number of magnitude {largest:.4g}; at most {LARGEST:g} is "
            "served, which is far above trained weights"
        )
    return None


def too_strong(
    pairs: Mapping[str, LoraPair], effects: Mapping[str, Sequence[AnyEffect]]
) -> Iterator[str]:
    """Yield modules where an input of length 1 could get a delta above LARGEST, or where B times
    the trained strength overflows half precision. The numbers must have passed `extreme`."""
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
    """Return norms over the last dimension, in fp32."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, ord, dim=-1, dtype=torch.float32)
    return lengths


def _pairs(
    pairs: Mapping[str, LoraPair], effects: Mapping[str, Sequence[AnyEffect]]
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yield (module, A, B, strength), each with a leading dimension for experts."""
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
