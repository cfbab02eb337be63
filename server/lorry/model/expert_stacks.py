"""The quantized weights of all experts of a layer: one projection of theirs in one stack.

transformers has a tensor `[E, O, I]` in its place, or `[E, I, O]`, and quantizes linears alone.
Here the experts lie one after the other as the rows of one matrix `[E O, I]`, in the formats of
`lorry.model.int8` and `lorry.model.four_bit`. `lorry.model.experts` puts them into a model.

Letters: S rows, sorted by expert; E experts, I in, O out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from bitsandbytes.functional import quantize_4bit
from torch import Tensor, nn

from lorry.model import four_bit, int8
from lorry.model.guard import require
from lorry.model.int8 import Int8Linear
from lorry_adapters.lora.expert_effects import Runs

BLOCK_SIZE = 64
"""Number of 4-bit weights that share a scale, as in bitsandbytes' linears."""


class ExpertStack(nn.Module, ABC):
    """y = x W_e', for rows whose experts are known. The weights are never changed, so copies of a
    module share them."""

    def __init__(self, experts: int, out_features: int, in_features: int) -> None:
        super().__init__()
        self.experts, self.out_features, self.in_features = experts, out_features, in_features

    def __deepcopy__(self, memo: dict[int, object]) -> ExpertStack:
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, O, I."""
        return self.experts, self.out_features, self.in_features

    @abstractmethod
    def base_tensors(self) -> Mapping[str, Tensor]:
        """The weights as numbers, those of one linear of E O outputs. May be copies."""

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    @abstractmethod
    def multiply(self, expert: int, x_SI: Tensor) -> Tensor:
        """`[S, O]`, by one expert."""

    def forward(self, x_SI: Tensor, every: Runs) -> Tensor:
        """`[S, O]` in the type of x. `every`: which rows are which expert's."""
        y_SO = x_SI.new_empty(len(x_SI), self.out_features)
        for expert, first, last in every:
            y_SO[first:last] = self.multiply(expert, x_SI[first:last])
        return y_SO

    def dense_weight(self) -> Tensor:
        """`[E, O, I]` in fp32, a copy."""
        return dense(self.base_tensors()).view(self.shape)


class PlainStack(ExpertStack):
    """Turns an expert's weights to fp32 whenever rows use them, and multiplies exactly."""

    def __init__(self, experts: int, tensors: Mapping[str, Tensor]) -> None:
        """`tensors`: as `Int8Linear` or `FourBitLinear` has them."""
        rows, width = tensors["codes"].shape
        require(rows % experts == 0, f"{rows} outputs of {experts} experts")
        super().__init__(experts, rows // experts, 2 * width if "levels" in tensors else width)
        self._tensors = dict(tensors)

    def base_tensors(self) -> Mapping[str, Tensor]:
        return self._tensors

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def multiply(self, expert: int, x_SI: Tensor) -> Tensor:
        mine = slice(expert * self.out_features, (expert + 1) * self.out_features)
        tensors = {
            name: tensor if name == "levels" else tensor[mine]
            for name, tensor in self._tensors.items()
        }
        return F.linear(x_SI, dense(tensors).to(x_SI.dtype))


class Int8Stack(ExpertStack):
    """Multiplies integers like `Int8Linear`."""

    def __init__(self, plain: PlainStack) -> None:
        """`plain` is a stack in 8 bits."""
        super().__init__(*plain.shape)
        tensors, size = plain.base_tensors(), self.out_features
        parts = (torch.split(tensors[name], size) for name in ("codes", "scale"))
        # Not as children: adapters must not be able to target them.
        self._linears = tuple(
            Int8Linear(codes_OI, scale_O, None) for codes_OI, scale_O in zip(*parts, strict=True)
        )

    def base_tensors(self) -> Mapping[str, Tensor]:
        return _joined([linear.base_tensors() for linear in self._linears])

    @property
    def nbytes(self) -> int:
        return sum(linear.nbytes for linear in self._linears)

    def multiply(self, expert: int, x_SI: Tensor) -> Tensor:
        y_SO: Tensor = self._linears[expert](x_SI)
        return y_SO


def dense(tensors: Mapping[str, Tensor]) -> Tensor:
    """`[E O, I]` in fp32."""
    return four_bit.dense(tensors) if "levels" in tensors else int8.dense(tensors)


def quantized(weight_EOI: Tensor, kind: str, *, double_quant: bool) -> PlainStack:
    """In 4 bits where `kind` is nf4 or fp4 and I consists of whole blocks, else in 8.

    `weight_EOI`: of any floating type and any strides, on the CPU. `double_quant`: scales of 4-bit
    blocks are quantized, too.
    """
    experts, _, inputs = weight_EOI.shape
    eight = kind == "int8" or inputs % BLOCK_SIZE != 0
    # Expert by expert: in fp32 all of them are eight times what is kept.
    parts = [
        _in_8_bits(one_OI.float()) if eight else _in_4_bits(one_OI.float(), kind, double_quant)
        for one_OI in weight_EOI
    ]
    return PlainStack(experts, _joined(parts))


def _in_8_bits(weight_OI: Tensor) -> dict[str, Tensor]:
    """Codes and scales by the absmax of each row (arXiv:2208.07339, section 2.1)."""
    absmax_O = weight_OI.abs().amax(1).clamp_min(1e-30)
    codes_OI = (weight_OI * (127 / absmax_O.unsqueeze(1))).round().to(torch.int8)
    return {"codes": codes_OI, "scale": absmax_O / 127}


def _in_4_bits(weight_OI: Tensor, kind: str, double_quant: bool) -> dict[str, Tensor]:
    """bitsandbytes' codes, as its linear has them."""
    codes, state = quantize_4bit(
        weight_OI.contiguous(),
        blocksize=BLOCK_SIZE,
        compress_statistics=double_quant,
        quant_type=kind,
    )
    return four_bit.tensors_of(codes, state, *weight_OI.shape)


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The experts' tensors one after the other; all have the same levels."""
    first = parts[0]
    return {
        name: first[name] if name == "levels" else torch.cat([part[name] for part in parts])
        for name in first
    }
