"""Int8 weights in the order in which the compiled step reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorry.model.compiled.structs import Linear
from lorry.model.guard import require
from lorry.model.int8 import Int8Linear

BLOCK = 16
"""Outputs of one block."""

FOUR = 4
"""Inputs that one integer dot product instruction takes."""


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """Keeps the memory that `struct` points to."""

    codes: Tensor
    """int8, [out / 16, in / 4, 16, 4]."""
    scale_O: Tensor
    sum_O: Tensor
    """int32, of each output's codes."""
    bias_O: Tensor | None
    out_features: int
    in_features: int
    sizes: tuple[int, ...]
    """Outputs of each linear in it."""
    biased: tuple[bool, ...]
    """Which of them has a bias of its own."""

    def part(self, index: int) -> dict[str, Tensor]:
        """The tensors of one of the linears, in their own order. Copies."""
        first = sum(self.sizes[:index])
        rows = slice(first, first + self.sizes[index])
        codes_OI = self.codes.permute(0, 2, 1, 3).reshape(self.out_features, self.in_features)
        found = {"codes": codes_OI[rows].clone(), "scale": self.scale_O[rows].double()}
        if self.bias_O is None or not self.biased[index]:
            return found
        return {**found, "bias": self.bias_O[rows].clone()}

    def struct_of(self, index: int) -> Linear:
        """One of the linears alone, in the same memory."""
        first, size = sum(self.sizes[:index]), self.sizes[index]
        require(first % BLOCK == 0, f"a linear that begins at row {first}")
        bias_O = self.bias_O if self.biased[index] else None
        return Linear(
            self.codes.data_ptr() + first * self.in_features,
            self.scale_O[first:].data_ptr(),
            self.sum_O[first:].data_ptr(),
            None if bias_O is None else bias_O[first:].data_ptr(),
            size,
            self.in_features,
        )

    @property
    def struct(self) -> Linear:
        return Linear(
            self.codes.data_ptr(),
            self.scale_O.data_ptr(),
            self.sum_O.data_ptr(),
            None if self.bias_O is None else self.bias_O.data_ptr(),
            self.out_features,
            self.in_features,
        )

    @property
    def nbytes(self) -> int:
        bias = 0 if self.bias_O is None else self.bias_O.nbytes
        return self.codes.nbytes + self.scale_O.nbytes + self.sum_O.nbytes + bias


def pack(*linears: Int8Linear) -> PackedLinear:
    """Linears that read the same input, one after the other in one."""
    parts = [linear.base_tensors() for linear in linears]
    codes_OI = torch.cat([part["codes"] for part in parts])
    out, inputs = codes_OI.shape
    require(
        out % BLOCK == 0 and inputs % BLOCK == 0,
        f"{inputs} to {out} features, not whole blocks of {BLOCK}",
    )
    biases = [part.get("bias") for part in parts]
    bias_O: Tensor | None = None
    if any(bias is not None for bias in biases):
        bias_O = torch.cat(
            [
                torch.zeros(linear.out_features) if bias is None else bias
                for linear, bias in zip(linears, biases, strict=True)
            ]
        )
    blocks = codes_OI.view(out // BLOCK, BLOCK, inputs // FOUR, FOUR)
    return PackedLinear(
        codes=blocks.permute(0, 2, 1, 3).contiguous(),
        scale_O=torch.cat([part["scale"].float() for part in parts]).contiguous(),
        sum_O=codes_OI.sum(1, dtype=torch.int32).contiguous(),
        bias_O=bias_O,
        out_features=out,
        in_features=inputs,
        sizes=tuple(linear.out_features for linear in linears),
        biased=tuple(bias is not None for bias in biases),
    )
