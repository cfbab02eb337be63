"""Bound deltas that consist of vectors of a module's widths: DoRA, (IA)3, biases.

They add `more * base(x) + shift`, the base's output for another input, or a DoRA's own pair times
its factor. Other deltas are only functions. These also expose their numbers, so that a step
that does not call functions can apply them (`lorry.model.compiled.packed_vectors`).

Letters: M tokens of one adapter, I in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Delta = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x of M tokens: `[M, I]` or ids `[M]`; the base's output `[M, O]`; scales `[M, 1]`): `[M, O]`."""

KNOWN_SCALES = 4
"""Scales for which a DoRA's factors are cached: most requests use the default."""


Held = list[tuple[Tensor, ...]]


def kept_on_device(
    held: Held, device: torch.device, dtype: torch.dtype, *tensors: Tensor
) -> tuple[Tensor, ...]:
    """Return contiguous copies of an adapter's tensors on the device, and keep them in `held`.

    They are made at the first call, which never comes if the compiled step applies the adapter.
    """
    if not held:
        held.append(tuple(tensor.contiguous().to(device, dtype) for tensor in tensors))
    return held[0]


@dataclass(frozen=True, slots=True, eq=False)
class BoundDora:
    """(g - 1) (base(x) - bias) + g s B A x with g = m / sqrt(w + 2 s c + s^2 d), s the scale
    times `scaling`; the letters are `effects.Dora`'s."""

    a_RI: Tensor
    b_OR: Tensor
    """As stored, in host memory."""
    scaling: float
    magnitude_O: Tensor
    w_O: Tensor
    c_O: Tensor
    d_O: Tensor
    """fp32, like the other two and the magnitude."""
    bias_O: Tensor | None
    """The base's."""
    dtype: torch.dtype
    device: torch.device
    _held: Held = field(default_factory=list, repr=False)
    _known: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def gain(self, s: Tensor) -> Tensor:
        """Return g, `[O]` for one strength or `[M, O]` for those of M tokens `[M, 1]`."""
        norm = (self.w_O + 2 * s * self.c_O + s.square() * self.d_O).clamp_min(0).sqrt()
        return self.magnitude_O / norm

    def __call__(self, x_MI: Tensor, y_MO: Tensor, scale_M1: Tensor) -> Tensor:
        a_IR, b_RO = self.pair()
        without_MO = y_MO if self.bias_O is None else y_MO - self.bias_O
        # On a device, reading the number would wait for it.
        if self.device.type == "cpu" and scale_M1.numel() == 1:
            more_O, scaled_RO = self._at_one_scale(scale_M1, b_RO)
            return torch.addmm(without_MO * more_O, x_MI @ a_IR, scaled_RO)
        s_M1 = scale_M1.float() * self.scaling
        gain_MO = self.gain(s_M1)
        pair_MO = ((x_MI @ a_IR) @ b_RO) * s_M1
        return ((gain_MO - 1) * without_MO + gain_MO * pair_MO).to(y_MO.dtype)

    def pair(self) -> tuple[Tensor, ...]:
        """Return A and B, transposed, on the device."""
        return kept_on_device(self._held, self.device, self.dtype, self.a_RI.T, self.b_OR.T)

    def _at_one_scale(self, scale: Tensor, b_RO: Tensor) -> tuple[Tensor, Tensor]:
        """Return (g - 1 `[O]`, g s B `[R, O]`), cached for the next step."""
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
    """An additional bias."""

    shift_O: Tensor
    scaled: bool
    """True if the scale multiplies it."""

    def __call__(self, x: Tensor, y_MO: Tensor, scale_M1: Tensor) -> Tensor:
        return (scale_M1 * self.shift_O if self.scaled else self.shift_O).expand_as(y_MO)


@dataclass(frozen=True, slots=True, eq=False)
class OutwardGain:
    """The output times 1 + scale * more."""

    more_O: Tensor

    def __call__(self, x: Tensor, y_MO: Tensor, scale_M1: Tensor) -> Tensor:
        return scale_M1 * self.more_O * y_MO


@dataclass(frozen=True, slots=True, eq=False)
class InwardGain:
    """The output for x times 1 + scale * more."""

    more_I: Tensor
    module: nn.Module

    def __call__(self, x_MI: Tensor, y_MO: Tensor, scale_M1: Tensor) -> Tensor:
        # The whole product again, not that of the difference: a quantized base rounds its input,
        # and the rounded input must be the scaled one.
        scaled_MO: Tensor = self.module(x_MI * (1 + scale_M1 * self.more_I))
        return scaled_MO - y_MO
