"""Deltas that come down to vectors of a module's widths, bound to it: DoRA, (IA)3, biases.

What they add is `more * base(x) + shift`, or the base's answer to another input, and a
DoRA's own pair times its gain. Other deltas are functions and nothing else; these tell
their numbers too, so that a step which does not call functions can apply them
(`lorry.model.compiled.packed_vectors`).

Letters: M tokens of one adapter, I in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Delta = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x of M tokens: `[M, I]` or ids `[M]`; the base's answer `[M, O]`; scales `[M, 1]`): `[M, O]`."""

KNOWN_SCALES = 4
"""Of a DoRA, whose gains are kept ready: most requests ask for the default."""


@dataclass(frozen=True, slots=True, eq=False)
class BoundDora:
    """(g - 1) (base(x) - bias) + g s B A x with g = m / sqrt(w + 2 s c + s^2 d), s the scale
    times `scaling`; the letters are `effects.Dora`'s."""

    a_RI: Tensor
    b_OR: Tensor
    """As they were stored, in host memory."""
    scaling: float
    magnitude_O: Tensor
    w_O: Tensor
    c_O: Tensor
    d_O: Tensor
    """fp32, as the other two and the magnitude."""
    bias_O: Tensor | None
    """The base's."""
    dtype: torch.dtype
    device: torch.device
    _held: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)
    _known: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def gain(self, s: Tensor) -> Tensor:
        """g `[O]` or `[M, O]` for one strength or those of M tokens `[M, 1]`."""
        norm = (self.w_O + 2 * s * self.c_O + s.square() * self.d_O).clamp_min(0).sqrt()
        return self.magnitude_O / norm

    def __call__(self, x_MI: Tensor, y_MO: Tensor, scale_M1: Tensor) -> Tensor:
        a_IR, b_RO = self.pair()
        without_MO = y_MO if self.bias_O is None else y_MO - self.bias_O
        # On a device the number would have to be waited for.
        if self.device.type == "cpu" and scale_M1.numel() == 1:
            more_O, scaled_RO = self._at_one_scale(scale_M1, b_RO)
            return torch.addmm(without_MO * more_O, x_MI @ a_IR, scaled_RO)
        s_M1 = scale_M1.float() * self.scaling
        gain_MO = self.gain(s_M1)
        pair_MO = ((x_MI @ a_IR) @ b_RO) * s_M1
        return ((gain_MO - 1) * without_MO + gain_MO * pair_MO).to(y_MO.dtype)

    def pair(self) -> tuple[Tensor, Tensor]:
        """A and B, turned round, on the device. Made when first asked for: where another step
        applies this, nobody asks."""
        if not self._held:
            a_IR, b_RO = self.a_RI.T.contiguous(), self.b_OR.T.contiguous()
            self._held.append((a_IR.to(self.device, self.dtype), b_RO.to(self.device, self.dtype)))
        return self._held[0]

    def _at_one_scale(self, scale: Tensor, b_RO: Tensor) -> tuple[Tensor, Tensor]:
        """(gain - 1 `[O]`, gain s B `[R, O]`), kept for the next step."""
        asked = float(scale)
        if asked not in self._known:
            if len(self._known) >= KNOWN_SCALES:
                self._known.clear()
            s_1 = scale.flatten().float() * self.scaling
            gain_O = self.gain(s_1)
            more_O, scaled_RO = gain_O - 1, b_RO * (gain_O * s_1)
            self._known[asked] = more_O.to(self.dtype), scaled_RO.to(self.dtype)
        return self._known[asked]


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """A bias more."""

    shift_O: Tensor
    scaled: bool
    """The scale multiplies it."""

    def __call__(self, x: Tensor, y_MO: Tensor, scale_M1: Tensor) -> Tensor:
        return (scale_M1 * self.shift_O if self.scaled else self.shift_O).expand_as(y_MO)


@dataclass(frozen=True, slots=True, eq=False)
class OutwardGain:
    """The answer times 1 + scale * more."""

    more_O: Tensor

    def __call__(self, x: Tensor, y_MO: Tensor, scale_M1: Tensor) -> Tensor:
        return scale_M1 * self.more_O * y_MO


@dataclass(frozen=True, slots=True, eq=False)
class InwardGain:
    """The answer to x times 1 + scale * more."""

    more_I: Tensor
    module: nn.Module

    def __call__(self, x_MI: Tensor, y_MO: Tensor, scale_M1: Tensor) -> Tensor:
        # The whole product again, not that of the difference: a quantized base rounds what it
        # is given, and this is what it would have been given.
        scaled_MO: Tensor = self.module(x_MI * (1 + scale_M1 * self.more_I))
        return scaled_MO - y_MO
