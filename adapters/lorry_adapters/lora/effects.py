"""The effects of an adapter on a module beyond a plain pair of matrices.

Everything is a *delta*: a module's output is base(x) plus the sum of its adapters' deltas, each
computed from x and from the base's own output, never from another adapter's. So every kind can be
mixed with every other in one batch and in one sum, and the base itself is never changed.

An effect contains the file's data, in host memory. `bind` combines it once with its module,
outside the running steps. A step only calls the resulting `Delta`. Deltas that are vectors of
the module's widths or matrices are in `vector_deltas` and `matrix_deltas`, from which the server's
compiled step reads the numbers.

The scale multiplies the same strength as PEFT's `set_scale`: the pair of a DoRA, also in the norm;
the distance from 1 of an (IA)3 vector. Trained replacements of the base's own numbers (biases,
saved modules, token rows) have no strength and apply fully.

Letters: M tokens of one adapter, I in, O out, R rank, V vocabulary, H embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from lorry_adapters.lora.matrix_deltas import BoundKronecker, BoundShared
from lorry_adapters.lora.vector_deltas import BoundDora, Delta, InwardGain, OutwardGain, Shift

__all__ = [
    "Delta",
    "Dora",
    "Effect",
    "EffectTarget",
    "InputGain",
    "Kronecker",
    "OutputGain",
    "OwnBias",
    "PairBias",
    "Projections",
    "Vera",
]


@dataclass(frozen=True, slots=True)
class EffectTarget:
    """The module of an effect."""

    module: nn.Module
    """The module itself, as it was before it was wrapped."""
    weight: Callable[[], Tensor]
    """Returns a copy of its weight as a linear's, `[O, I]` in fp32, whatever its storage."""
    dtype: torch.dtype
    """The dtype of the step's activations."""
    device: torch.device

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    def held(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype)


class Effect(Protocol):
    @property
    def nbytes(self) -> int: ...

    def bind(self, base: EffectTarget) -> Delta | None:
        """Return the delta, or None if it would not change the base's output."""
        ...

    def cut(self, start: int, stop: int) -> Effect | None:
        """Return the part for these outputs, or None if it cannot be split."""
        ...


class Indivisible:
    """An effect that cannot be split by outputs."""

    __slots__ = ()

    def cut(self, start: int, stop: int) -> None:
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Dora:
    """y = m / |W + s B A| (W x + s B A x) + bias, s the strength: arXiv:2402.09353, eq. 5.

    |.| is each output's norm. With w = |W|^2, c = <W, B A> and d = |B A|^2 of each output it is
    sqrt(w + 2 s c + s^2 d), so one bound effect serves every scale.
    """

    a_RI: Tensor
    b_OR: Tensor
    magnitude_O: Tensor
    scaling: float

    @property
    def nbytes(self) -> int:
        return self.a_RI.nbytes + self.b_OR.nbytes + self.magnitude_O.nbytes

    def cut(self, start: int, stop: int) -> Dora:
        outputs = slice(start, stop)
        return Dora(self.a_RI, self.b_OR[outputs], self.magnitude_O[outputs], self.scaling)

    def bind(self, base: EffectTarget) -> Delta:
        weight_OI = base.weight()
        a_RI, b_OR = (one.to(weight_OI.device).float() for one in (self.a_RI, self.b_OR))
        product_OR = weight_OI @ a_RI.T
        # In double precision: a difference of squares of nearly equal size follows.
        w_O = weight_OI.double().square().sum(1)
        c_O = (b_OR * product_OR).double().sum(1)
        d_O = ((b_OR @ (a_RI @ a_RI.T)) * b_OR).double().sum(1)
        w_O, c_O, d_O = (v.float().to(base.device) for v in (w_O, c_O, d_O))
        bound = BoundDora(
            a_RI=self.a_RI,
            b_OR=self.b_OR,
            scaling=self.scaling,
            magnitude_O=self.magnitude_O.float().to(base.device),
            w_O=w_O,
            c_O=c_O,
            d_O=d_O,
            bias_O=base.bias,
            dtype=base.dtype,
            device=base.device,
        )
        if base.device.type != "cpu":
            # A step should not wait for the copy to the device.
            bound.pair()
        return bound


@dataclass(frozen=True, slots=True, eq=False)
class PairBias:
    """The delta of a bias on lora_B: s b, s the strength."""

    bias_O: Tensor
    scaling: float

    @property
    def nbytes(self) -> int:
        return self.bias_O.nbytes

    def cut(self, start: int, stop: int) -> PairBias:
        return PairBias(self.bias_O[start:stop], self.scaling)

    def bind(self, base: EffectTarget) -> Delta:
        return Shift(base.held(self.bias_O.float() * self.scaling), scaled=True)


@dataclass(frozen=True, slots=True, eq=False)
class OwnBias:
    """A trained bias of the module itself, which replaces the base's."""

    bias_O: Tensor

    @property
    def nbytes(self) -> int:
        return self.bias_O.nbytes

    def cut(self, start: int, stop: int) -> OwnBias:
        return OwnBias(self.bias_O[start:stop])

    def bind(self, base: EffectTarget) -> Delta:
        difference_O = self.bias_O.float().to(base.device)
        if base.bias is not None:
            difference_O = difference_O - base.bias.float()
        return Shift(base.held(difference_O), scaled=False)


@dataclass(frozen=True, slots=True, eq=False)
class InputGain:
    """(IA)3 on a feed-forward layer: y = W (l x) + bias, arXiv:2205.05638, section 3.3."""

    gain_I: Tensor

    @property
    def nbytes(self) -> int:
        return self.gain_I.nbytes

    def cut(self, start: int, stop: int) -> InputGain:
        return self

    def bind(self, base: EffectTarget) -> Delta:
        return InwardGain(base.held(self.gain_I.float() - 1), base.module)


@dataclass(frozen=True, slots=True, eq=False)
class OutputGain:
    """(IA)3 on a layer's output: y = l (W x + bias)."""

    gain_O: Tensor

    @property
    def nbytes(self) -> int:
        return self.gain_O.nbytes

    def cut(self, start: int, stop: int) -> OutputGain:
        return OutputGain(self.gain_O[start:stop])

    def bind(self, base: EffectTarget) -> Delta:
        return OutwardGain(base.held(self.gain_O.float() - 1))


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker(Indivisible):
    """y += s (w1 (x) w2) x: x as a [c, d] table, w2 along its rows and w1 along its columns."""

    w1_ac: Tensor
    w2_bd: Tensor
    scaling: float

    @property
    def nbytes(self) -> int:
        return self.w1_ac.nbytes + self.w2_bd.nbytes

    def bind(self, base: EffectTarget) -> Delta:
        w1_ac = self.w1_ac.float() * self.scaling
        return BoundKronecker(w1_ac, self.w2_bd.float(), base.dtype, base.device)


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """A and B that all linears of an adapter share, as wide as the widest of them."""

    a_RI: Tensor
    b_OR: Tensor
    _held: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False
    )

    def held(self, base: EffectTarget) -> tuple[Tensor, Tensor]:
        """Return both on the base's device, copied once for all of its linears."""
        key = (base.device, base.dtype)
        if key not in self._held:
            self._held[key] = (base.held(self.a_RI), base.held(self.b_OR))
        return self._held[key]


@dataclass(frozen=True, slots=True, eq=False)
class Vera(Indivisible):
    """y += b * (B (d * (A x))), A and B cut to the linear's own widths."""

    projections: Projections
    d_R: Tensor
    b_O: Tensor

    @property
    def nbytes(self) -> int:
        return self.d_R.nbytes + self.b_O.nbytes

    @property
    def shared(self) -> tuple[Tensor, ...]:
        """Held once for the whole adapter."""
        return self.projections.a_RI, self.projections.b_OR

    def bind(self, base: EffectTarget) -> Delta:
        a_RI, b_OR = self.projections.held(base)
        return BoundShared(a_RI, b_OR, base.held(self.d_R), base.held(self.b_O))
