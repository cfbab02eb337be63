"""4-bit codes made in C, against bitsandbytes' own."""

from __future__ import annotations

import ctypes

import pytest
import torch
from bitsandbytes.backends.default import ops
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorry.model.compiled import library
from lorry.model.compiled.quantizer import quantized
from support.compiled import compiled

KINDS = ["nf4", "fp4"]


def theirs(weight: Tensor, blocksize: int, kind: str) -> tuple[Tensor, Tensor]:
    """bitsandbytes' default, by the function itself: ours is registered in its place."""
    bounds, order = ops._get_4bit_quantize_bounds(kind, torch.device("cpu"))
    flat = weight.reshape(-1).float()
    whole = len(flat) - len(flat) % blocksize
    blocks = flat[:whole].view(-1, blocksize)
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38).view(-1, 1))).clamp(-1, 1).reshape(-1)
    if whole < len(flat):
        last = flat[whole:].abs().max().clamp(min=1e-38)
        absmax = torch.cat([absmax, last[None]])
        scaled = torch.cat([scaled, (flat[whole:] / last).clamp(-1, 1)])
    if len(scaled) % 2:
        scaled = torch.cat([scaled, torch.zeros(1)])
    codes = order[torch.bucketize(scaled, bounds)].to(torch.uint8)
    return (codes[::2] << 4 | codes[1::2])[:, None], absmax


def check(built: ctypes.CDLL, weight: Tensor, blocksize: int, kind: str) -> None:
    expected, found = theirs(weight, blocksize, kind), quantized(built, weight, blocksize, kind)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_codes_are_bitsandbytes(built: ctypes.CDLL, kind: str, dtype: torch.dtype) -> None:
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[0] = 0
    weight[1, :64] = 1e-6
    weight[2, 5] = 1000
    check(built, weight, 64, kind)
    check(built, weight, 128, kind)


@pytest.mark.parametrize("size", [64, 65, 100, 127, 63, 1, 8])
@pytest.mark.parametrize("blocksize", [64, 24])
def test_a_last_block_may_be_shorter(built: ctypes.CDLL, size: int, blocksize: int) -> None:
    check(built, torch.linspace(-2, 3, size), blocksize, "nf4")


@settings(deadline=None)
@given(
    st.lists(
        st.floats(
            width=32,
            allow_nan=False,
            allow_infinity=False,
            min_value=-(2.0**100),
            max_value=2.0**100,
        ),
        min_size=64,
        max_size=64,
    ),
    st.sampled_from(KINDS),
)
def test_any_block(weights: list[float], kind: str) -> None:
    check(BUILT, torch.tensor(weights), 64, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_values_on_a_bound_and_beside_it(built: ctypes.CDLL, kind: str) -> None:
    bounds, _ = ops._get_4bit_quantize_bounds(kind, torch.device("cpu"))
    infinity = torch.tensor(torch.inf)
    beside = [torch.nextafter(bounds, infinity), torch.nextafter(bounds, -infinity)]
    values = torch.cat([bounds, *beside, torch.ones(1)])
    check(built, torch.nn.functional.pad(values, (0, 64 - len(values))), 64, kind)


@pytest.fixture(scope="module", autouse=True)
def _best(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The best library, for hypothesis, which knows no fixtures of a function."""
    global BUILT
    if not library.instructions():
        pytest.skip("this processor has no AVX2")
    BUILT = compiled(library.instructions()[0], tmp_path_factory.mktemp("built"))


BUILT: ctypes.CDLL
