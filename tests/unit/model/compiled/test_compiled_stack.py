"""Experts whose products are compiled."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lorry.model.chunks import FAR_4_BITS, FAR_8_BITS, rounded
from lorry.model.compiled import compiled_stack
from lorry.model.compiled.compiled_linear import CompiledLinear
from lorry.model.compiled.compiled_stack import CompiledStack
from lorry.model.compiled.multiplier import Multiplier, is_close
from lorry.model.compiled.packer import Packer
from lorry.model.expert_stacks import PlainStack, quantized
from lorry.model.experts import stacks_of
from lorry.model.guard import Unsafe
from support.compiled import require_compiled_step
from support.executor_driver import load_tiny
from unit.model.test_expert_stacks import EVERY, KINDS, SHAPE, rows, weights


@pytest.fixture
def packer(built: ctypes.CDLL) -> Iterator[Packer]:
    made = Packer(built, 2)
    yield made
    made.close()


def compiled(built: ctypes.CDLL, packer: Packer, plain: PlainStack) -> CompiledStack:
    packed = packer.tensors(plain.base_tensors())
    return CompiledStack(packed, plain.experts, Multiplier(built, plain.in_features, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_each_expert_multiplies_its_own_rows(kind: str, built: ctypes.CDLL, packer: Packer) -> None:
    plain = quantized(weights(), kind, double_quant=True)
    stack, x_SI = compiled(built, packer, plain), rows()
    assert torch.equal(stack.dense_weight(), plain.dense_weight())
    assert {n: t.shape for n, t in stack.base_tensors().items()} == {
        n: t.shape for n, t in plain.base_tensors().items()
    }
    far = FAR_8_BITS if kind == "int8" else FAR_4_BITS
    found_SO, exact_SO = stack(x_SI, EVERY), plain(rounded(x_SI, far), EVERY)
    assert float((found_SO - exact_SO).norm() / exact_SO.norm()) < 1e-3
    for expert, first, last in EVERY:
        # Bit for bit, whichever rows lie beside it.
        one = [stack.multiply(expert, x_SI[row : row + 1]) for row in range(first, last)]
        assert torch.equal(torch.cat(one), found_SO[first:last])
    shared = sum(t.nbytes for n, t in plain.base_tensors().items() if n != "levels")
    assert shared <= stack.nbytes <= shared + 8 * SHAPE[0] * SHAPE[1] + 16


def test_parts_are_whole_blocks(built: ctypes.CDLL, packer: Packer) -> None:
    plain = quantized(weights(4, 24, 64), "int8", double_quant=True)
    assert not compiled_stack.packable(plain)
    packed = packer.tensors(plain.base_tensors())
    with pytest.raises(Unsafe, match="4 experts"):
        CompiledStack(packed, 4, Multiplier(built, 64, 1))
    for first, out in ((8, 16), (0, 24), (80, 32), (-16, 16)):
        with pytest.raises(Unsafe):
            packed.part(first, out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_a_base_s_experts_are_compiled(
    family: str, kind: str, tiny_model: Callable[[str], Path]
) -> None:
    require_compiled_step()
    mine = load_tiny(tiny_model(family), quantization=kind, kernels="auto")
    theirs = load_tiny(tiny_model(family), quantization=kind)
    assert {type(stack) for _, _, stack in stacks_of(mine.model)} == {CompiledStack}
    linears = [m for m in mine.model.modules() if isinstance(m, CompiledLinear)]
    # A shared expert's gate has one output.
    narrowest = min(linear.out_features for linear in linears)
    assert (narrowest == 1) == (family == "qwen2_moe")
    for (_, _, one), (_, _, other) in zip(
        stacks_of(mine.model), stacks_of(theirs.model), strict=True
    ):
        assert torch.equal(one.dense_weight(), other.dense_weight())
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        off = mine.model(ids).logits.log_softmax(-1) - theirs.model(ids).logits.log_softmax(-1)
    # Of some tokens a rounding changes the experts.
    assert 0 < float(off.abs().median()) < 0.1


def test_a_wrong_product_is_not_used(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_compiled_step()
    monkeypatch.setattr(
        CompiledStack, "multiply", lambda self, expert, x: torch.zeros(len(x), self.out_features)
    )
    loaded = load_tiny(tiny_model("mixtral"), quantization="nf4", kernels="auto")
    assert {type(stack) for _, _, stack in stacks_of(loaded.model)} == {PlainStack}
    assert any(isinstance(module, CompiledLinear) for module in loaded.model.modules())
    assert not is_close(torch.zeros(3), torch.ones(3))
