"""The int8 linear against the exact product of the same codes, and rows among any others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorry.model import int8
from lorry.model.int8 import CODES, Int8Linear

pytestmark = pytest.mark.skipif(
    not int8.available(), reason="this torch has no fbgemm (not an x86 processor)"
)

OUT, IN = 48, 80


def made(
    seed: int = 0, *, bias: bool = True, largest: bool = False
) -> tuple[Int8Linear, Tensor, Tensor]:
    """The module, and its exact weight and bias in fp64."""
    generator = torch.Generator().manual_seed(seed)
    codes_OI = torch.randint(-127, 128, (OUT, IN), generator=generator, dtype=torch.int8)
    if largest:
        codes_OI = codes_OI.sign().where(codes_OI != 0, 1) * 127
    scale_O = torch.rand(OUT, generator=generator) * 0.01 + 1e-4
    bias_O = torch.randn(OUT, generator=generator)
    linear = Int8Linear(codes_OI.to(torch.int8), scale_O, bias_O if bias else None)
    exact_OI = codes_OI.double() * scale_O.double().unsqueeze(1)
    return linear, exact_OI, bias_O.double() if bias else torch.zeros(OUT, dtype=torch.float64)


def activations(rows: int, seed: int = 0, *, outlier: float = 1.0) -> Tensor:
    x_TI = torch.randn(rows, IN, generator=torch.Generator().manual_seed(seed))
    x_TI[:, 7] *= outlier
    return x_TI


def check_bound(linear: Int8Linear, exact_OI: Tensor, bias_O: Tensor, x_TI: Tensor) -> None:
    """An activation is known to half of a code's 63rd part, and everything else is exact but
    for the last bits of fp32."""
    expected_TO = x_TI.double() @ exact_OI.t() + bias_O
    half_code_T = x_TI.double().abs().amax(1) / CODES / CODES / 2
    sums_TO = x_TI.double().abs() @ exact_OI.abs().t() + bias_O.abs()
    bound_TO = half_code_T.unsqueeze(1) * exact_OI.abs().sum(1) + 1e-6 * sums_TO
    error_TO = (linear(x_TI).double() - expected_TO).abs()
    assert (error_TO <= bound_TO).all()


@pytest.mark.parametrize("outlier", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("bias", [True, False])
def test_within_half_a_code_of_the_exact_product(outlier: float, bias: bool) -> None:
    linear, exact_OI, bias_O = made(bias=bias)
    check_bound(linear, exact_OI, bias_O, activations(33, outlier=outlier))


def test_a_thousandth_of_the_product_on_ordinary_numbers() -> None:
    linear, exact_OI, bias_O = made()
    x_TI = activations(200, outlier=30.0)
    expected_TO = x_TI.double() @ exact_OI.t() + bias_O
    error_TO = linear(x_TI).double() - expected_TO
    assert float(error_TO.norm() / expected_TO.norm()) < 1e-3


def test_the_largest_codes_do_not_saturate() -> None:
    """All weights at 127 and all activations at their row's largest: the kernel's 16-bit
    sums are as full as they can be."""
    linear, exact_OI, bias_O = made(largest=True)
    signs_OI = exact_OI.sign().float()
    for x_TI in (signs_OI, -signs_OI, torch.ones(3, IN), -torch.ones(3, IN)):
        check_bound(linear, exact_OI, bias_O, x_TI)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 40),
    seed=st.integers(0, 99),
    outlier=st.sampled_from([1.0, 1e-6, 1e4]),
    size=st.sampled_from([1.0, 1e-20, 1e20]),
)
def test_any_size_of_numbers(rows: int, seed: int, outlier: float, size: float) -> None:
    linear, exact_OI, bias_O = made(seed % 3)
    check_bound(linear, exact_OI, bias_O, activations(rows, seed, outlier=outlier) * size)


def test_rows_of_zeros_give_the_bias() -> None:
    linear, _, bias_O = made()
    x_TI = activations(4)
    x_TI[1] = 0
    assert torch.equal(linear(x_TI)[1], bias_O.float())
    without, _, _ = made(bias=False)
    assert torch.equal(without(torch.zeros(2, IN)), torch.zeros(2, OUT))


@settings(max_examples=60)
@given(rows=st.integers(1, 70), place=st.integers(0, 69), seed=st.integers(0, 99),
       neighbour=st.sampled_from([0.0, 1.0, 1e30, float("inf"), float("nan")]))  # fmt: skip
def test_a_row_is_the_same_bit_for_bit_in_any_batch(
    rows: int, place: int, seed: int, neighbour: float
) -> None:
    linear, _, _ = made()
    place %= rows
    x_TI = activations(rows, seed)
    mine_1I = x_TI[place : place + 1].clone()
    x_TI *= neighbour
    x_TI[place] = mine_1I[0]
    assert torch.equal(linear(x_TI)[place], linear(mine_1I)[0])


def test_whatever_is_not_a_number_stays_so() -> None:
    """It must come out as an error, not as a likely token."""
    linear, _, _ = made()
    x_TI = activations(3)
    x_TI[0, 5], x_TI[2, 5] = float("nan"), float("inf")
    y_TO = linear(x_TI)
    assert not y_TO[0].isfinite().any()
    assert y_TO[1].isfinite().all()
    assert not y_TO[2].isfinite().any()


def test_any_leading_shape() -> None:
    linear, _, _ = made()
    x_TI = activations(6)
    y_TO = linear(x_TI)
    assert torch.equal(linear(x_TI.view(2, 3, IN)), y_TO.view(2, 3, OUT))
    assert torch.equal(linear(x_TI[0]), y_TO[0])
    # Not every caller's rows lie one after the other.
    assert torch.equal(linear(x_TI.t().contiguous().t()), y_TO)


def test_its_input_stays_as_it_is() -> None:
    linear, _, _ = made()
    x_TI = activations(4)
    before_TI = x_TI.clone()
    linear(x_TI)
    assert torch.equal(x_TI, before_TI)


def test_the_codes_can_be_read_back_and_do_not_change() -> None:
    generator = torch.Generator().manual_seed(3)
    codes_OI = torch.randint(-127, 128, (OUT, IN), generator=generator, dtype=torch.int8)
    scale_O = torch.rand(OUT, generator=generator) + 0.5
    linear = Int8Linear(codes_OI, scale_O, None)
    linear(activations(3))
    tensors = linear.base_tensors()
    assert set(tensors) == {"codes", "scale"}
    assert torch.equal(tensors["codes"], codes_OI)
    assert torch.equal(tensors["scale"], scale_O.double())
    with_bias, _, bias_O = made()
    assert torch.equal(with_bias.base_tensors()["bias"], bias_O.float())


def test_its_bytes_are_those_of_the_codes() -> None:
    linear, _, _ = made()
    assert linear.nbytes == OUT * IN + 4 * OUT + 4 * OUT
    without, _, _ = made(bias=False)
    assert without.nbytes == OUT * IN + 4 * OUT


def test_modeling_code_can_ask_for_the_dtype() -> None:
    linear, _, _ = made()
    assert linear.weight.dtype is torch.float32
