"""A linear with bitsandbytes' 4-bit weights, for processors.

The codes are bitsandbytes' own: nothing is quantized again. Three roundings make their product one
of integers.

- *Levels.* Each of the 16 values that a code can mean becomes a whole number of up to 7 bits and a
  sign. The unit is chosen so that the error is least: 0.17% of a block's largest weight on average
  for nf4, where the distance between two levels is 8% and more.
- *Scales.* A block's scale is a half-precision fraction of the largest scale of its output.
  Blocks of more than `CHUNK` weights have their scale several times.
- *Activations* are rounded in chunks (`lorry.model.chunks`), which costs a fifteenth of what the
  weights' own 4 bits do.

`FourBitLinear` is the plain formula over those rounded numbers: what the compiled product
(`lorry.model.compiled.compiled_linear`) is made from and compared with. It dequantizes the whole
weight at every call.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from bitsandbytes.functional import QuantState, dequantize_blockwise, get_4bit_type
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from lorry.model.chunks import CHUNK, FAR_4_BITS, rounded
from lorry.model.guard import require
from lorry.model.quantized_linear import QuantizedLinear

_LARGEST_LEVEL = 127


def levels_of(kind: str) -> tuple[Tensor, float]:
    """The whole numbers, int8 `[16]`, that a code of `kind` (nf4 or fp4) means, and their unit."""
    exact = get_4bit_type(kind, device="cpu").double()
    units = 1 / torch.arange(64, _LARGEST_LEVEL + 1, dtype=torch.double)
    rounded = (exact / units.unsqueeze(1)).round()
    best = int((rounded * units.unsqueeze(1) - exact).square().sum(1).argmin())
    return rounded[best].to(torch.int8), float(units[best])


def convertible(module: nn.Module) -> bool:
    """True if `module` is bitsandbytes' 4-bit linear in blocks that `FourBitLinear` can hold."""
    if not isinstance(module, Linear4bit) or module.weight.quant_state is None:
        return False
    state = module.weight.quant_state
    return (
        module.weight.device.type == "cpu"
        and not getattr(state, "packing_format_for_cpu", False)
        and state.blocksize % CHUNK == 0
        and module.in_features % CHUNK == 0
    )


class FourBitLinear(QuantizedLinear):
    """W = levels[code] x chunk scale x scale."""

    codes: Tensor
    """uint8 `[O, I / 2]`: the first of two inputs in the upper half."""
    chunk_scale: Tensor
    """fp16 `[O, I / CHUNK]`, -1 to 1."""
    scale: Tensor
    """fp32 `[O]`."""
    levels: Tensor
    """int8 `[16]`."""

    def __init__(
        self,
        codes_OB: Tensor,
        chunk_scale_OC: Tensor,
        scale_O: Tensor,
        levels: Tensor,
        bias_O: Tensor | None,
    ) -> None:
        out, inputs = codes_OB.shape[0], 2 * codes_OB.shape[1]
        require(
            codes_OB.dtype is torch.uint8 and chunk_scale_OC.shape == (out, inputs // CHUNK),
            f"codes of {codes_OB.dtype}, {tuple(chunk_scale_OC.shape)} scales",
        )
        super().__init__(inputs, out, bias_O)
        self.register_buffer("codes", codes_OB)
        self.register_buffer("chunk_scale", chunk_scale_OC)
        self.register_buffer("scale", scale_O)
        self.register_buffer("levels", levels)

    @classmethod
    def of(cls, module: Linear4bit) -> FourBitLinear:
        """The same codes; `convertible`."""
        state, size = module.weight.quant_state, (module.out_features, module.in_features)
        made = tensors_of(module.weight.data, state, *size)
        return cls(made["codes"], made["chunk_scale"], made["scale"], made["levels"], module.bias)

    def base_tensors(self) -> Mapping[str, Tensor]:
        tensors = {
            "codes": self.codes,
            "chunk_scale": self.chunk_scale,
            "scale": self.scale,
            "levels": self.levels,
        }
        return tensors if self.bias is None else {**tensors, "bias": self.bias}

    @property
    def nbytes(self) -> int:
        weights = self.out_features * self.in_features
        bias = 0 if self.bias is None else self.bias.nbytes
        return weights // 2 + 2 * weights // CHUNK + 4 * self.out_features + bias

    def dense_weight(self) -> Tensor:
        return dense(self.base_tensors())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded(x, FAR_4_BITS), self.dense_weight(), self.bias)


def tensors_of(codes: Tensor, state: QuantState, out: int, inputs: int) -> dict[str, Tensor]:
    """`FourBitLinear`'s, of what `quantize_4bit` made of a weight `[out, inputs]`; inputs are whole
    chunks."""
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    # A block may begin in one row and end in the next.
    absmax_OC = (
        absmax.float()
        .repeat_interleave(state.blocksize // CHUNK)[: out * inputs // CHUNK]
        .view(out, inputs // CHUNK)
    )
    # Quantized themselves, the scales of small blocks may be negative.
    largest_O = absmax_OC.abs().amax(1).clamp_min(1e-30)
    levels, unit = levels_of(state.quant_type)
    return {
        "codes": codes.view(torch.uint8).reshape(out, inputs // 2),
        "chunk_scale": (absmax_OC / largest_O.unsqueeze(1)).half(),
        "scale": largest_O * unit,
        "levels": levels,
    }


def dense(tensors: Mapping[str, Tensor]) -> Tensor:
    """`[O, I]` in fp32, of a `FourBitLinear`'s tensors."""
    codes_OB = tensors["codes"]
    codes_OI = torch.stack([codes_OB >> 4, codes_OB & 15], 2).flatten(1)
    out, inputs = codes_OI.shape
    chunks = tensors["levels"].float()[codes_OI.int()].view(out, -1, CHUNK)
    scale_OC = tensors["chunk_scale"].float() * tensors["scale"].unsqueeze(1)
    return (chunks * scale_OC.unsqueeze(2)).view(out, inputs)
