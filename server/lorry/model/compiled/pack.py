"""A linear's weights in the order in which the compiled step reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorry.model.chunks import CHUNK
from lorry.model.compiled.structs import Linear
from lorry.model.four_bit import FourBitLinear
from lorry.model.guard import require
from lorry.model.int8 import Int8Linear

BLOCK = 16
"""Outputs of one block."""

FOUR = 4
"""Inputs that one integer dot product instruction takes."""


GROUP = 8
"""Rows of A that lie together, and inputs of each."""


def padded(rank: int) -> int:
    """Return the rank that the compiled step runs."""
    return -(-rank // GROUP) * GROUP


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """Keeps the memory that `struct` points to."""

    codes: Tensor
    """8 bits: int8 `[out / 16, in / 4, 16, 4]`. 4 bits: uint8 `[out / 16, in / 8, 16, 4]`, where
    the first 4 of 8 inputs are in the lower halves."""
    scale_O: Tensor
    out_features: int
    in_features: int
    bias_O: Tensor | None = None
    sum_O: Tensor | None = None
    """8 bits: int32, of each output's codes, where activations are codes, too
    (`lorry.model.int8`). None: they are bytes in chunks (`lorry.model.chunks`), and inputs are
    whole chunks."""
    levels: Tensor | None = None
    """4 bits: int8 `[16]`."""
    chunk_scale: Tensor | None = None
    """4 bits: fp16 `[out / 16, in / CHUNK, 16]`."""

    def tensors(self) -> dict[str, Tensor]:
        """As `base_tensors` of the linear has them. Copies."""
        out, inputs = self.out_features, self.in_features
        if self.levels is None or self.chunk_scale is None:
            codes_OI = self.codes.permute(0, 2, 1, 3).reshape(out, inputs)
            found = {"codes": codes_OI, "scale": self.scale_O.double()}
        else:
            lower = (self.codes & 15).permute(0, 2, 1, 3).reshape(out, -1, 1, FOUR)
            upper = (self.codes >> 4).permute(0, 2, 1, 3).reshape(out, -1, 1, FOUR)
            pairs = torch.cat([lower, upper], 2).view(out, inputs // 2, 2)
            found = {
                "codes": pairs[..., 0] << 4 | pairs[..., 1],
                "chunk_scale": self.chunk_scale.permute(0, 2, 1).reshape(out, -1),
                "scale": self.scale_O.clone(),
                "levels": self.levels.clone(),
            }
        return found if self.bias_O is None else {**found, "bias": self.bias_O.clone()}

    def check(self) -> None:
        """Raises Unsafe where a tensor has another size than the C code takes it to have."""
        out, inputs = self.out_features, self.in_features
        require(out % BLOCK == 0 and inputs % BLOCK == 0, f"{out} x {inputs} weights")
        four_bits = self.levels is not None
        wanted = {
            "codes": (out * inputs // 2, torch.uint8) if four_bits else (out * inputs, torch.int8),
            "scale_O": (out, torch.float32),
            "bias_O": (out, torch.float32),
            "sum_O": (out, torch.int32),
            "levels": (16, torch.int8),
            "chunk_scale": (out * inputs // CHUNK, torch.float16),
        }
        needed = {"codes", "scale_O"}
        needed |= {"levels", "chunk_scale"} if four_bits else set()
        for name, (size, dtype) in wanted.items():
            tensor: Tensor | None = getattr(self, name)
            if tensor is None:
                require(name not in needed, f"no {name}")
                continue
            found = (tensor.numel(), tensor.dtype, tensor.is_contiguous())
            require(found == (size, dtype, True), f"{name}: {found}, not {size} of {dtype}")
        in_chunks = four_bits or self.sum_O is None
        require(not in_chunks or inputs % CHUNK == 0, f"{inputs} inputs, not whole chunks")

    def part(self, first: int, out_features: int) -> PackedLinear:
        """Return a linear of some of its outputs, in whole blocks. It shares the memory."""
        require(
            first % BLOCK == 0
            and out_features % BLOCK == 0
            and 0 <= first <= first + out_features <= self.out_features,
            f"outputs from {first} on, {out_features} of {self.out_features}",
        )
        blocks = slice(first // BLOCK, (first + out_features) // BLOCK)
        outputs = slice(first, first + out_features)

        def of(tensor: Tensor | None, some: slice) -> Tensor | None:
            return None if tensor is None else tensor[some]

        return replace(
            self,
            codes=self.codes[blocks],
            scale_O=self.scale_O[outputs],
            out_features=out_features,
            bias_O=of(self.bias_O, outputs),
            sum_O=of(self.sum_O, outputs),
            chunk_scale=of(self.chunk_scale, blocks),
        )

    @property
    def struct(self) -> Linear:
        def address(tensor: Tensor | None) -> int | None:
            return None if tensor is None else tensor.data_ptr()

        return Linear(
            codes=self.codes.data_ptr(),
            scale_O=self.scale_O.data_ptr(),
            sum_O=address(self.sum_O),
            bias_O=address(self.bias_O),
            levels=address(self.levels),
            chunk_scale=address(self.chunk_scale),
            out=self.out_features,
            in_=self.in_features,
        )

    @property
    def nbytes(self) -> int:
        tensors = (self.codes, self.scale_O, self.bias_O, self.sum_O)
        more = (self.levels, self.chunk_scale)
        return sum(tensor.nbytes for tensor in (*tensors, *more) if tensor is not None)


def pack(linear: Int8Linear | FourBitLinear) -> PackedLinear:
    out, inputs = linear.out_features, linear.in_features
    require(
        out % BLOCK == 0 and inputs % BLOCK == 0,
        f"{inputs} to {out} features, not whole blocks of {BLOCK}",
    )
    return _pack8(linear) if isinstance(linear, Int8Linear) else _pack4(linear)


def _pack8(linear: Int8Linear) -> PackedLinear:
    tensors = linear.base_tensors()
    codes_OI = tensors["codes"]
    out, inputs = codes_OI.shape
    blocks = codes_OI.view(out // BLOCK, BLOCK, inputs // FOUR, FOUR)
    return PackedLinear(
        codes=blocks.permute(0, 2, 1, 3).contiguous(),
        scale_O=tensors["scale"].float().contiguous(),
        sum_O=codes_OI.sum(1, dtype=torch.int32).contiguous() if inputs % CHUNK else None,
        bias_O=tensors.get("bias"),
        out_features=out,
        in_features=inputs,
    )


def _pack4(linear: FourBitLinear) -> PackedLinear:
    tensors = linear.base_tensors()
    out, inputs = linear.out_features, linear.in_features
    # [outputs, 8 inputs, its 4 first and its 4 last, pairs of them]
    codes = tensors["codes"].view(out // BLOCK, BLOCK, inputs // 8, 2, 2)
    codes = torch.stack([codes >> 4, codes & 15], 5).view(out // BLOCK, BLOCK, -1, 2, FOUR)
    lower, upper = codes.permute(0, 2, 3, 1, 4).unbind(2)
    scale_OC = tensors["chunk_scale"]
    return PackedLinear(
        codes=(lower | upper << 4).contiguous(),
        scale_O=tensors["scale"].clone(),
        levels=tensors["levels"].clone(),
        chunk_scale=scale_OC.view(out // BLOCK, BLOCK, -1).permute(0, 2, 1).contiguous(),
        bias_O=tensors.get("bias"),
        out_features=out,
        in_features=inputs,
    )
