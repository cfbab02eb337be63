"""An int8 linear that multiplies integers, for processors.

bitsandbytes' int8 module on a CPU turns its whole weight to fp32 at every call.
This one keeps the same integers and the same row scales (nothing is rounded
again) and hands them to fbgemm's kernel.

The activations must be quantized for that. One 7-bit code each (more bits
saturate the kernel's 16-bit sums where the processor has no VNNI) loses 3% of a
product with an outlier column, so each row is sent twice: its codes, and the codes
of what they left over,

    x = a (hi + lo / 63),    hi, lo in {-63 ... 63} / 63,    a = max |x| of the row

which brings the error to 0.1% at less than twice the price of one pass. The sums
are exact integers and every row has its own scale: a row's result does not
depend on the batch it is in.

The compiled product (`lorry.model.compiled`) has these codes for output heads; most others
read activations in chunks (`lorry.model.chunks`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from lorry.model.guard import require
from lorry.model.quantized_linear import QuantizedLinear

CODES = 63
"""Largest activation code; 2 x 127 x (CODES + 64) stays below 2^15."""


def available() -> bool:
    """True where this torch has the kernel (x86)."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class Int8Linear(QuantizedLinear):
    """W = codes x scale."""

    def __init__(self, codes_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> None:
        """`codes_OI`: int8 in -127 ... 127; `scale_O`: fp32, what one code is worth."""
        require(
            codes_OI.dtype is torch.int8 and codes_OI.dim() == 2,
            f"codes of {codes_OI.dtype} in {codes_OI.dim()} dimensions",
        )
        super().__init__(codes_OI.shape[1], codes_OI.shape[0], bias_O)
        with warnings.catch_warnings():
            # torch announces the end of its quantized tensors; the kernel needs one to pack.
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(
                codes_OI.cpu().contiguous(),
                scale_O.double().cpu(),
                torch.zeros(self.out_features, dtype=torch.long),
                0,
            )
            engine = torch.backends.quantized.engine
            torch.backends.quantized.engine = "fbgemm"
            try:
                self._packed = torch.ops.quantized.linear_prepack(quantized, None)
            finally:
                torch.backends.quantized.engine = engine

    def base_tensors(self) -> Mapping[str, Tensor]:
        """The packed weight unpacked."""
        quantized, _ = torch.ops.quantized.linear_unpack(self._packed)
        tensors = {"codes": quantized.int_repr(), "scale": quantized.q_per_channel_scales()}
        return tensors if self.bias is None else {**tensors, "bias": self.bias}

    def dense_weight(self) -> Tensor:
        return dense(self.base_tensors())

    @property
    def nbytes(self) -> int:
        bias = 0 if self.bias is None else self.bias.nbytes
        return self.out_features * self.in_features + 4 * self.out_features + bias

    def forward(self, x: Tensor) -> Tensor:
        x_TI = x.reshape(-1, self.in_features)
        tokens = x_TI.shape[0]
        # A row of zeros has no largest element: any scale does.
        absmax_T1 = x_TI.abs().amax(1, keepdim=True).clamp_min_(1e-30)
        codes_TI = x_TI * (CODES / absmax_T1)
        high_TI = codes_TI.round()
        pair_2TI = torch.cat([high_TI, codes_TI.sub_(high_TI).mul_(CODES)])
        y_2TO = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            pair_2TI, 1.0, CODES + 1, self._packed
        )
        y_TO = torch.add(y_2TO[:tokens], y_2TO[tokens:], alpha=1 / CODES)
        y_TO *= absmax_T1.mul_(1 / CODES)
        if self.bias is not None:
            y_TO += self.bias
        return y_TO.view(*x.shape[:-1], self.out_features)


def dense(tensors: Mapping[str, Tensor]) -> Tensor:
    """`[O, I]` in fp32, of an `Int8Linear`'s tensors."""
    return tensors["codes"].float() * tensors["scale"].float().unsqueeze(1)
