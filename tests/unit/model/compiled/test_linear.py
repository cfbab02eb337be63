"""The compiled linear against `PlainProduct` and `FourBitLinear`, the same integers by plain
operations."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorry.model import int8
from lorry.model.chunks import CHUNK
from lorry.model.compiled import structs
from lorry.model.compiled.pack import pack
from lorry.model.four_bit import FourBitLinear, levels_of
from lorry.model.int8 import Int8Linear
from support.compiled import compiled, runnable
from support.plain_product import PlainProduct

TOKENS = (*range(1, 10), 16, 65)
MOST_TOKENS = 70
WIDEST = 576

SHAPES = [(16, 16), (64, 48), (576, 1552), (80, 176), (48, 16), (256, 33 * 16)]
"""In and out: multiples of 16; out of 16 and 32, even and odd numbers of blocks."""

IN_CHUNKS = [shape for shape in SHAPES if shape[0] % CHUNK == 0]
IN_CODES = [shape for shape in SHAPES if shape[0] % CHUNK]

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

    def __call__(self, linear: Int8Linear | FourBitLinear, x_TI: Tensor) -> Tensor:
        packed = pack(linear)
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
    return PlainProduct(codes_OI, scale_O, torch.randn(out, generator=random) if bias else None)


def four_bits_of(
    fan_in: int, out: int, *, kind: str = "nf4", bias: bool = False, seed: int = 0
) -> FourBitLinear:
    random = torch.Generator().manual_seed(seed)
    codes_OB = torch.randint(0, 256, (out, fan_in // 2), generator=random, dtype=torch.uint8)
    chunk_scale_OC = torch.rand(out, fan_in // CHUNK, generator=random).half()
    scale_O = torch.rand(out, generator=random) / 50 + 1e-3
    bias_O = torch.randn(out, generator=random) if bias else None
    return FourBitLinear(codes_OB, chunk_scale_OC, scale_O, levels_of(kind)[0], bias_O)


def linear_in(
    bits: int, fan_in: int, out: int, *, bias: bool = False
) -> Int8Linear | FourBitLinear:
    return (linear_of if bits == 8 else four_bits_of)(fan_in, out, bias=bias)


def inputs(tokens: int, fan_in: int, seed: int = 1) -> Tensor:
    """Rows of different size, with outliers, as a model's activations have them."""
    random = torch.Generator().manual_seed(seed)
    x_TI = torch.randn(tokens, fan_in, generator=random)
    x_TI[:, 3] *= 40
    x_TI[1::3, fan_in // 2] *= 90
    x_TI *= torch.logspace(-3, 3, tokens).unsqueeze(1)
    return x_TI


def compare(kernel: Kernel, shape: tuple[int, int], bias: bool, *, apart: float) -> None:
    """`apart`: of a token's largest output."""
    linear = linear_of(*shape, bias=bias)
    for tokens in TOKENS:
        x_TI = inputs(tokens, shape[0])
        expected, got = linear(x_TI), kernel(linear, x_TI)
        largest_T1 = expected.abs().amax(1, keepdim=True)
        assert ((got - expected).abs() <= apart * largest_T1).all(), tokens


@needs_reference
@pytest.mark.parametrize("shape", IN_CODES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_the_numbers_of_the_generic_path(
    kernel: Kernel, shape: tuple[int, int], bias: bool
) -> None:
    compare(kernel, shape, bias, apart=1e-6)


@pytest.mark.parametrize("shape", IN_CHUNKS, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_the_numbers_of_activations_in_chunks(
    kernel: Kernel, shape: tuple[int, int], bias: bool
) -> None:
    # The sums of chunks are of floats, in an order of their own.
    compare(kernel, shape, bias, apart=2e-5)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(64, 48), (576, 1552), (128, 16), (256, 33 * 16)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_the_numbers_of_the_plain_formula_in_4_bits(
    kernel: Kernel, shape: tuple[int, int], bias: bool, kind: str
) -> None:
    linear = four_bits_of(*shape, bias=bias, kind=kind)
    for tokens in TOKENS:
        x_TI = inputs(tokens, shape[0])
        expected, got = linear(x_TI), kernel(linear, x_TI)
        largest_T1 = expected.abs().amax(1, keepdim=True)
        # The sums of chunks are of floats, in an order of their own.
        assert ((got - expected).abs() <= 2e-5 * largest_T1).all(), tokens


def test_instruction_sets_agree_to_the_bit(tmp_path: Path) -> None:
    linears = [four_bits_of(*shape, bias=True) for shape in IN_CHUNKS]
    linears += [four_bits_of(576, 176, kind="fp4")]
    linears += [linear_of(*shape, bias=True) for shape in (*SHAPES, (112, 80))]
    answers = []
    for name in runnable():
        with kernel_of(compiled(name, tmp_path)) as kernel:
            answers.append(
                [
                    kernel(linear, inputs(tokens, linear.in_features))
                    for linear in linears
                    for tokens in (*TOKENS, 15, 17, 24, 33, 41)
                ]
            )
    assert len(answers) > 1
    for others in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], others, strict=True))


@pytest.mark.parametrize("level", [127, -127])
@pytest.mark.parametrize("code", [127, -127])
@pytest.mark.parametrize("tokens", [13, 33])
def test_the_largest_sums_are_exact_in_4_bits(
    kernel: Kernel, level: int, code: int, tokens: int
) -> None:
    # Where AVX2's 16-bit sums would saturate if a code were one larger.
    levels = torch.full((16,), level, dtype=torch.int8)
    codes_OB = torch.zeros(16, 32, dtype=torch.uint8)
    linear = FourBitLinear(codes_OB, torch.ones(16, 1).half(), torch.ones(16), levels, None)
    assert (kernel(linear, torch.full((tokens, 64), float(code))) == 64.0 * level * code).all()


@pytest.mark.parametrize("weight", [127, -127, -128])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("fan_in", "code"), [(64, 127), (80, 63)], ids=["chunks", "codes"])
@pytest.mark.parametrize("tokens", [13, 33])
def test_the_largest_sums_are_exact(
    kernel: Kernel, weight: int, sign: int, fan_in: int, code: int, tokens: int
) -> None:
    # Where AVX2's 16-bit sums would saturate if an activation code were one larger.
    codes_OI = torch.full((32, fan_in), weight, dtype=torch.int8)
    linear = Int8Linear(codes_OI, torch.ones(32), None)
    x_TI = torch.full((tokens, fan_in), float(sign * code))
    assert (kernel(linear, x_TI) == float(fan_in * weight * sign * code)).all()


@pytest.mark.parametrize(("fan_in", "code"), [(576, 127), (560, 63)], ids=["chunks", "codes"])
def test_sums_of_integers_are_exact(kernel: Kernel, fan_in: int, code: int) -> None:
    random = torch.Generator().manual_seed(5)
    codes_OI = torch.randint(-127, 128, (48, fan_in), generator=random, dtype=torch.int8)
    x_TI = torch.randint(1 - code, code, (23, fan_in), generator=random)
    x_TI[:, 7::CHUNK] = code  # the largest of each chunk: a code is worth 1
    expected = x_TI @ codes_OI.long().t()
    assert expected.abs().max() < 2**24
    got = kernel(Int8Linear(codes_OI, torch.ones(48), None), x_TI.float())
    assert torch.equal(got.long(), expected) and torch.equal(got, got.round())


def test_a_far_chunk_has_low_bytes(kernel: Kernel) -> None:
    # In units of 1 / 254: a byte is worth 254 and what it leaves over is a whole number.
    random = torch.Generator().manual_seed(6)
    codes_OI = torch.randint(-2, 3, (48, 576), generator=random, dtype=torch.int8)
    x_TI = torch.randint(-126, 127, (23, 576), generator=random)
    x_TI[:, 5::CHUNK] = 127
    for token in range(23):
        # Of some tokens no chunk, of others one or two of nine, and not the same ones.
        for chunk in [[], [token % 9], [3, (token + 5) % 9]][token % 3]:
            own = torch.randint(-127 * 254, 127 * 254 + 1, (CHUNK,), generator=random)
            own[token] = 127 * 254
            x_TI[token, CHUNK * chunk : CHUNK * (chunk + 1)] = own
    expected = x_TI @ codes_OI.long().t()
    assert expected.abs().max() < 2**24
    got = kernel(Int8Linear(codes_OI, torch.ones(48), None), x_TI.float())
    # Without low bytes an input is up to 127 off.
    assert (got.double() - expected).abs().max() < 1


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(576, 176), (64, 48)], ids=str)
def test_a_row_does_not_depend_on_the_rows_beside_it(
    kernel: Kernel, shape: tuple[int, int], bits: int
) -> None:
    linear = linear_in(bits, *shape, bias=True)
    x_TI = inputs(65, shape[0])
    whole = kernel(linear, x_TI)
    for tokens in (*range(1, 10), 13, 16, 21, 40):
        for first in (0, 1, 17, 65 - tokens):
            rows = slice(first, first + tokens)
            assert torch.equal(kernel(linear, x_TI[rows]), whole[rows]), rows


@pytest.mark.parametrize("bits", [4, 8])
def test_any_number_of_threads_gives_the_same_bits(built: ctypes.CDLL, bits: int) -> None:
    linear, x_TI = linear_in(bits, 576, 176), inputs(37, 576)
    answers = []
    for num_threads in (1, 2, 3, 4, 7, 32):
        with kernel_of(built, num_threads) as kernel:
            answers.append(kernel(linear, x_TI))
    assert all(torch.equal(answers[0], other) for other in answers[1:])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_packed_weights_can_be_read_back(bits: int, bias: bool) -> None:
    linear = linear_in(bits, 128, 48, bias=bias)
    own, unpacked = linear.base_tensors(), pack(linear).tensors()
    assert own.keys() == unpacked.keys()
    for name, tensor in own.items():
        assert tensor.dtype == unpacked[name].dtype
        assert torch.equal(tensor, unpacked[name]), name


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_of_zeros_is_its_bias(kernel: Kernel, bits: int) -> None:
    linear = linear_in(bits, 64, 48, bias=True)
    x_TI = inputs(11, 64)
    x_TI[1] = 0
    got = kernel(linear, x_TI)
    assert linear.bias is not None and torch.equal(got[1], linear.bias)
    assert torch.equal(got[0], kernel(linear, x_TI[:1])[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38, 1e-40])
@pytest.mark.parametrize("place", [0, 5, 63])
@pytest.mark.parametrize("tokens", [6, 11])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_nan_or_an_infinity_stays_in_its_row(
    kernel: Kernel, bad: float, place: int, bits: int, tokens: int
) -> None:
    linear = linear_in(bits, 64, 48)
    x_TI = inputs(tokens, 64)
    clean = kernel(linear, x_TI)
    x_TI[2, place] = bad
    got = kernel(linear, x_TI)
    others = [token for token in range(tokens) if token != 2]
    assert torch.equal(got[others], clean[others])
    if abs(bad) < 1:
        assert got[2].isfinite().all()
    elif bad != 3e38:
        # Rounded to a code, a NaN would be a zero: an answer made up from nothing.
        assert got[2].isnan().all()
