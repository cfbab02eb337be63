"""Weights packed in C, against the same by PyTorch's operations."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lorry.model.compiled.pack import PackedLinear, pack
from lorry.model.compiled.packer import Packer
from lorry.model.guard import Unsafe
from lorry.model.int8 import Int8Linear
from lorry.model.kernels import _quantized
from unit.model.compiled.test_linear import four_bits_of, linear_of


@pytest.fixture(params=[1, 2, 3])
def packer(built: ctypes.CDLL, request: pytest.FixtureRequest) -> Iterator[Packer]:
    packer = Packer(built, request.param)
    yield packer
    packer.close()


def check(found: PackedLinear, expected: PackedLinear) -> None:
    for field in dataclasses.fields(PackedLinear):
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, Tensor):
            assert mine.dtype is theirs.dtype and torch.equal(mine, theirs), field.name
        else:
            assert mine == theirs, field.name


@pytest.mark.parametrize("shape", [(64, 16), (128, 48), (576, 1552)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_four_bits(packer: Packer, shape: tuple[int, int], bias: bool) -> None:
    for kind in ("nf4", "fp4"):
        linear = four_bits_of(*shape, kind=kind, bias=bias)
        check(packer.four_bits(linear.base_tensors()), pack(linear))


@pytest.mark.parametrize("shape", [(16, 16), (48, 80), (576, 1552)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_int8(packer: Packer, shape: tuple[int, int], bias: bool) -> None:
    linear = linear_of(*shape, bias=bias)
    tensors = linear.base_tensors()
    scale_O = tensors["scale"].float()
    check(packer.int8(tensors["codes"], scale_O, tensors.get("bias")), pack(linear))


@pytest.mark.parametrize("out", [1, 15, 17, 100])
def test_outputs_up_to_a_whole_block_are_zeros(packer: Packer, out: int) -> None:
    linear = linear_of(32, 112, bias=True)
    codes_OI, scale_O = linear.base_tensors()["codes"], linear.base_tensors()["scale"].float()
    assert linear.bias is not None
    packed = packer.int8(codes_OI[:out].contiguous(), scale_O[:out], linear.bias[:out])
    blocks = -(-out // 16) * 16
    assert packed.out_features == blocks
    found = packed.tensors()
    assert torch.equal(found["codes"][:out], codes_OI[:out]) and not found["codes"][out:].any()
    assert torch.equal(found["bias"][:out], linear.bias[:out]) and not found["bias"][out:].any()


@pytest.mark.parametrize("shape", [(64, 16), (48, 100)], ids=str)
def test_rows_are_quantized_as_by_pytorch(packer: Packer, shape: tuple[int, int]) -> None:
    if not torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no int8 kernel to compare with")
    head = nn.Linear(*shape, bias=False)
    with torch.no_grad():
        head.weight *= torch.logspace(-3, 3, shape[1]).unsqueeze(1)
        head.weight[3] = 0
    expected: Int8Linear = _quantized(head)
    codes_OI, scale_O = packer.quantized(head.weight.data)
    tensors = expected.base_tensors()
    assert torch.equal(codes_OI, tensors["codes"])
    assert torch.equal(scale_O, tensors["scale"].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_what_they_are_in_fp32(dtype: torch.dtype, packer: Packer) -> None:
    weight_OI = torch.randn(1100, 32).to(dtype)
    for half, whole in zip(
        packer.quantized(weight_OI), packer.quantized(weight_OI.float()), strict=True
    ):
        assert torch.equal(half, whole)


def test_other_memory_is_refused(packer: Packer) -> None:
    weight_OI = torch.randn(32, 64)
    for wrong in (weight_OI.double(), weight_OI.T, weight_OI[:, :60].contiguous()):
        with pytest.raises(Unsafe):
            packer.quantized(wrong)
    with pytest.raises(Unsafe):
        packer.int8(weight_OI, torch.ones(32), None)
