"""A bottleneck beside a layer's residual stream, as an effect on the linear before it.

A decoder layer computes r + f(norm(r)), once for its attention and once for its MLP. A bottleneck
adds s up(act(down(z))) to that. z is the output f, the sum r + f, or r itself (arXiv:1902.00751,
2005.00247, 2110.04366). f's last linear gives the output. r is known at the norm, so an effect
there leaves it for the one at the linear, which runs later in the same forward pass with the
same tokens.

Letters: M tokens of one adapter, I the linear's inputs, H the model's width, R the bottleneck's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from lorry_adapters.lora.effects import Delta, EffectTarget, Indivisible


class Reads(StrEnum):
    """The input of a bottleneck."""

    ANSWER = "answer"
    """The output of the attention or the MLP, before it is added to the stream."""
    SUM = "sum"
    """The stream after that."""
    RESIDUAL = "residual"
    """The stream before it: parallel to the attention or the MLP."""


ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leakyrelu": F.leaky_relu,
    "linear": lambda x: x,
    "mish": F.mish,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""By AdapterHub's and transformers' names."""


@dataclass(slots=True, eq=False)
class Stream:
    """Carries one norm's input to the linear that follows it in the same forward pass."""

    _held_MH: Tensor | None = field(default=None, repr=False)

    def leave(self, r_MH: Tensor) -> None:
        self._held_MH = r_MH

    def take(self) -> Tensor:
        # Not kept: a long prompt's activations would outlive its step.
        r_MH, self._held_MH = self._held_MH, None
        assert r_MH is not None, "the norm runs before the linear"
        return r_MH


@dataclass(frozen=True, slots=True, eq=False)
class Remembered(Indivisible):
    """An effect on a norm that adds nothing and keeps the input for a bottleneck."""

    stream: Stream

    @property
    def nbytes(self) -> int:
        return 0

    def bind(self, base: EffectTarget) -> Delta:
        def delta(r_MH: Tensor, y_MH: Tensor, scale_M1: Tensor) -> Tensor:
            self.stream.leave(r_MH)
            return torch.zeros_like(y_MH)

        return delta


@dataclass(frozen=True, slots=True, eq=False)
class Bottleneck(Indivisible):
    """An effect on the last linear of an attention or an MLP: y += s up(act(down(z)))."""

    down_RH: Tensor
    down_R: Tensor
    up_HR: Tensor
    up_H: Tensor
    strength: Tensor
    """s, trained or not: one number, or one per output."""
    activation: str
    """A key of ACTIVATIONS."""
    reads: Reads
    stream: Stream | None
    """None if it reads only the output."""

    @property
    def nbytes(self) -> int:
        every = (self.down_RH, self.down_R, self.up_HR, self.up_H, self.strength)
        return sum(one.nbytes for one in every)

    def bind(self, base: EffectTarget) -> Delta:
        down_RH, down_R = base.held(self.down_RH), base.held(self.down_R)
        strength_H1 = self.strength.float()[:, None]
        up_HR = base.held(self.up_HR.float() * strength_H1)
        up_H = base.held(self.up_H.float() * strength_H1[:, 0])
        act, reads, stream = ACTIVATIONS[self.activation], self.reads, self.stream

        def delta(x_MI: Tensor, y_MH: Tensor, scale_M1: Tensor) -> Tensor:
            z_MH = y_MH
            if stream is not None:
                r_MH = stream.take().to(y_MH.dtype)
                z_MH = r_MH if reads is Reads.RESIDUAL else r_MH + y_MH
            return F.linear(act(F.linear(z_MH, down_RH, down_R)), up_HR, up_H) * scale_M1

        return delta
