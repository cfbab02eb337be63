"""bitsandbytes' 4-bit weights in `FourBitLinear`: the same codes, and what the roundings cost."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise, get_4bit_type
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from lorry.model.chunks import CHUNK
from lorry.model.dense import dense_weight
from lorry.model.four_bit import FourBitLinear, convertible, levels_of
from lorry.model.guard import Unsafe

KINDS = ["nf4", "fp4"]


def theirs(
    weight_OI: Tensor, kind: str = "nf4", *, bias: bool = False, nested: bool = True
) -> Linear4bit:
    out, inputs = weight_OI.shape
    plain = nn.Linear(inputs, out, bias=bias)
    plain.weight.data = weight_OI
    module = Linear4bit(
        inputs,
        out,
        bias=bias,
        quant_type=kind,
        compute_dtype=torch.float32,
        compress_statistics=nested,
    )
    module.load_state_dict(plain.state_dict())
    return module.to("cpu").requires_grad_(False)


def weight_of(out: int, inputs: int) -> Tensor:
    """With outliers, and rows of different size."""
    weight_OI = torch.randn(out, inputs, generator=torch.Generator().manual_seed(3))
    weight_OI[out // 2, inputs // 3] = 40
    return weight_OI * torch.logspace(-3, 0, out).unsqueeze(1)


def exact(module: Linear4bit) -> Tensor:
    return dequantize_4bit(module.weight.data, module.weight.quant_state).float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_near_their_values(kind: str) -> None:
    levels, unit = levels_of(kind)
    values = get_4bit_type(kind, device="cpu")
    assert levels.dtype is torch.int8 and int(levels.abs().max()) <= 127
    off = (levels.float() * unit - values).abs()
    assert float(off.max()) < 0.005 and float(off.square().mean().sqrt()) < 0.0018
    assert int(levels[int(values.abs().argmin())]) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True], ids=["plain scales", "double quantization"])
@pytest.mark.parametrize("shape", [(48, 128), (32, 64), (96, 576), (96, 128)], ids=str)
def test_the_weight_is_bitsandbytes(shape: tuple[int, int], kind: str, nested: bool) -> None:
    module = theirs(weight_of(*shape), kind, nested=nested)
    assert convertible(module)
    mine = dense_weight(FourBitLinear.of(module))
    of_block = exact(module).view(shape[0], -1, CHUNK)
    largest = of_block.abs().amax(2, keepdim=True)
    off = (mine.view_as(of_block) - of_block).abs()
    # A level's rounding, a scale's in half precision.
    assert bool((off <= 0.0052 * largest + 1e-6 * of_block.abs().max()).all())


def test_the_product_is_bitsandbytes() -> None:
    module = theirs(weight_of(48, 576), bias=True)
    mine = FourBitLinear.of(module)
    x_TI = torch.randn(5, 576, generator=torch.Generator().manual_seed(4))
    expected = x_TI @ exact(module).T + module.bias
    assert float((mine(x_TI) - expected).norm() / expected.norm()) < 0.01
    assert mine(x_TI[:, None]).shape == (5, 1, 48)


@pytest.mark.parametrize("outlier", [1, 10, 50, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_the_roundings_cost_little_beside_the_4_bits(kind: str, outlier: float) -> None:
    """Also where one input is far larger than the others, in every token."""
    random = torch.Generator().manual_seed(4)
    weight_OI = torch.randn(48, 2048, generator=random)
    module = theirs(weight_OI.clone(), kind)
    x_TI = torch.randn(64, 2048, generator=random)
    x_TI[:, 9] *= outlier
    true_TO = x_TI @ weight_OI.T
    off = float((FourBitLinear.of(module)(x_TI) - true_TO).norm())
    assert off < 1.03 * float((x_TI @ exact(module).T - true_TO).norm())


def test_blocks_that_cross_rows_have_their_own_scales() -> None:
    module = theirs(weight_of(32, 192))
    state = module.weight.quant_state
    state.blocksize, state.nested = 128, False
    state.absmax = torch.arange(1.0, 32 * 192 / 128 + 1)
    found = FourBitLinear.of(module)
    scale_OC = found.chunk_scale.float() * (found.scale / levels_of("nf4")[1]).unsqueeze(1)
    assert scale_OC[0].tolist() == pytest.approx([1, 1, 2], rel=1e-3)
    assert scale_OC[1].tolist() == pytest.approx([2, 3, 3], rel=1e-3)


def test_a_scale_below_zero_is_kept() -> None:
    """Double quantization makes some of small blocks."""
    module = theirs(weight_of(96, 128))
    absmax = module.weight.quant_state.absmax
    state = module.weight.quant_state
    assert bool((dequantize_blockwise(absmax, state.state2) + state.offset < 0).any())
    mine = FourBitLinear.of(module)
    assert bool((mine.chunk_scale < 0).any()) and bool(mine.chunk_scale.isfinite().all())


def test_what_cannot_be_converted_is_left() -> None:
    assert not convertible(nn.Linear(64, 64))
    assert not convertible(theirs(weight_of(32, 96)))
    packed = theirs(weight_of(32, 64))
    packed.weight.quant_state.packing_format_for_cpu = True
    assert not convertible(packed)


def test_codes_of_another_kind_are_refused() -> None:
    with pytest.raises(Unsafe, match=r"codes of torch\.int32"):
        FourBitLinear(
            torch.zeros(16, 32, dtype=torch.int32),
            torch.ones(16, 1).half(),
            torch.ones(16),
            levels_of("nf4")[0],
            None,
        )
