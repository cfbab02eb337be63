"""The compiled int8 linear against `Int8Linear`, the same integers on another road."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from lorry.model import int8
from lorry.model.compiled import structs
from lorry.model.compiled.pack import pack
from lorry.model.int8 import Int8Linear

TOKENS = (*range(1, 10), 16, 65)
MOST_TOKENS = 70
WIDEST = 576

SHAPES = [(16, 16), (64, 48), (576, 1552), (80, 176), (48, 16), (256, 33 * 16)]
"""In and out: multiples of 16; out of 16 and 32, even and odd numbers of blocks."""

needs_reference = pytest.mark.skipif(
    not int8.available(), reason="this torch has no int8 kernel to compare with"
)


class Kernel:
    def __init__(self, built: ctypes.CDLL, num_threads: int = 1) -> None:
        self._built = built
        self._model = structs.Model(
            hidden=WIDEST, heads=1, kv_heads=1, head_size=16, inner=WIDEST, vocab=16, max_rank=1
        )
        self.engine = built.lorry_engine(ctypes.byref(self._model), MOST_TOKENS, 1, 16, num_threads)
        assert self.engine

    def __call__(self, linear: Int8Linear | tuple[Int8Linear, ...], x_TI: Tensor) -> Tensor:
        packed = pack(*(linear if isinstance(linear, tuple) else (linear,)))
        x_TI = x_TI.contiguous()
        y_TO = torch.full((x_TI.shape[0], packed.out_features), torch.nan)
        struct = packed.struct
        self._built.lorry_linear(
            self.engine, ctypes.byref(struct), x_TI.data_ptr(), y_TO.data_ptr(), x_TI.shape[0]
        )
        return y_TO


@contextmanager
def kernel_of(built: ctypes.CDLL, num_threads: int = 1) -> Iterator[Kernel]:
    kernel = Kernel(built, num_threads)
    try:
        yield kernel
    finally:
        built.lorry_engine_free(kernel.engine)


@pytest.fixture
def kernel(built: ctypes.CDLL) -> Iterator[Kernel]:
    with kernel_of(built) as made:
        yield made


def linear_of(fan_in: int, out: int, *, bias: bool = False, seed: int = 0) -> Int8Linear:
    random = torch.Generator().manual_seed(seed)
    codes_OI = torch.randint(-127, 128, (out, fan_in), generator=random, dtype=torch.int8)
    scale_O = torch.rand(out, generator=random) / 50 + 1e-3
    return Int8Linear(codes_OI, scale_O, torch.randn(out, generator=random) if bias else None)


def inputs(tokens: int, fan_in: int, seed: int = 1) -> Tensor:
    """Rows of different size, with outliers, as a model's activations have them."""
    random = torch.Generator().manual_seed(seed)
    x_TI = torch.randn(tokens, fan_in, generator=random)
    x_TI[:, 3] *= 40
    x_TI *= torch.logspace(-3, 3, tokens).unsqueeze(1)
    return x_TI


@needs_reference
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_the_numbers_of_the_generic_path(
    kernel: Kernel, shape: tuple[int, int], bias: bool
) -> None:
    linear = linear_of(*shape, bias=bias)
    for tokens in TOKENS:
        x_TI = inputs(tokens, shape[0])
        expected, got = linear(x_TI), kernel(linear, x_TI)
        largest_T1 = expected.abs().amax(1, keepdim=True)
        assert ((got - expected).abs() <= 1e-6 * largest_T1).all(), tokens


@pytest.mark.parametrize("weight", [127, -127, -128])
@pytest.mark.parametrize("code", [63, -63])
def test_the_largest_sums_are_exact(kernel: Kernel, weight: int, code: int) -> None:
    # Where AVX2's 16-bit sums would saturate if an activation code were one larger.
    codes_OI = torch.full((32, 64), weight, dtype=torch.int8)
    linear = Int8Linear(codes_OI, torch.ones(32), None)
    assert (kernel(linear, torch.full((3, 64), float(code))) == 64.0 * weight * code).all()


def test_sums_of_integers_are_exact(kernel: Kernel) -> None:
    random = torch.Generator().manual_seed(5)
    codes_OI = torch.randint(-127, 128, (48, 576), generator=random, dtype=torch.int8)
    x_TI = torch.randint(-62, 63, (9, 576), generator=random)
    x_TI[:, 7] = 63  # the largest of each row: a code is worth 1
    expected = x_TI @ codes_OI.long().t()
    assert expected.abs().max() < 2**24
    got = kernel(Int8Linear(codes_OI, torch.ones(48), None), x_TI.float())
    assert torch.equal(got.long(), expected) and torch.equal(got, got.round())


@pytest.mark.parametrize("shape", [(576, 176), (64, 48)], ids=str)
def test_a_row_does_not_depend_on_the_rows_beside_it(
    kernel: Kernel, shape: tuple[int, int]
) -> None:
    linear = linear_of(*shape, bias=True)
    x_TI = inputs(65, shape[0])
    whole = kernel(linear, x_TI)
    for tokens in range(1, 10):
        for first in (0, 1, 17, 65 - tokens):
            rows = slice(first, first + tokens)
            assert torch.equal(kernel(linear, x_TI[rows]), whole[rows]), rows


def test_any_number_of_threads_gives_the_same_bits(built: ctypes.CDLL) -> None:
    linear, x_TI = linear_of(576, 176), inputs(5, 576)
    answers = []
    for num_threads in (1, 2, 3, 4, 7):
        with kernel_of(built, num_threads) as kernel:
            answers.append(kernel(linear, x_TI))
    assert all(torch.equal(answers[0], other) for other in answers[1:])


def test_linears_with_one_input_are_packed_side_by_side(kernel: Kernel) -> None:
    parts = (linear_of(64, 48), linear_of(64, 16, bias=True, seed=2), linear_of(64, 32, seed=3))
    x_TI = inputs(4, 64)
    apart = torch.cat([kernel(part, x_TI) for part in parts], 1)
    assert torch.equal(kernel(parts, x_TI), apart)
    packed = pack(*parts)
    for index, part in enumerate(parts):
        own, unpacked = part.base_tensors(), packed.part(index)
        assert own.keys() == unpacked.keys()
        for name, tensor in own.items():
            assert tensor.dtype == unpacked[name].dtype
            assert torch.equal(tensor, unpacked[name]), name


def test_a_row_of_zeros_is_its_bias(kernel: Kernel) -> None:
    linear = linear_of(64, 48, bias=True)
    x_TI = inputs(3, 64)
    x_TI[1] = 0
    got = kernel(linear, x_TI)
    assert torch.equal(got[1], linear.bias)
    assert torch.equal(got[0], kernel(linear, x_TI[:1])[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38, 1e-40])
@pytest.mark.parametrize("place", [0, 5, 63])
def test_what_is_no_number_stays_in_its_row(kernel: Kernel, bad: float, place: int) -> None:
    linear = linear_of(64, 48)
    x_TI = inputs(6, 64)
    clean = kernel(linear, x_TI)
    x_TI[2, place] = bad
    got = kernel(linear, x_TI)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(got[others], clean[others])
    if abs(bad) < 1:
        assert got[2].isfinite().all()
    elif bad != 3e38:
        # Rounded to a code, a NaN would be a zero: an answer made up from nothing.
        assert got[2].isnan().all()
