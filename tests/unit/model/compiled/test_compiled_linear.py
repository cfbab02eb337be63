"""A quantized base whose linears are compiled ones."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorry.model import quantize
from lorry.model.base_loader import LoadedModel
from lorry.model.compiled import multiplier, structs
from lorry.model.compiled.compiled_linear import CompiledLinear, replace_linears
from lorry.model.compiled.multiplier import Multiplier
from lorry.model.compiled.pack import pack
from lorry.model.dense import dense_weight
from lorry.model.memory import digest_of_base
from support.compiled import require_compiled_step
from support.executor_driver import load_tiny
from unit.model.compiled.test_linear import four_bits_of

KINDS = ["nf4", "fp4", "int8"]


@pytest.fixture
def load(tiny_model: Callable[[str], Path]) -> Callable[..., LoadedModel]:
    require_compiled_step()

    def load(family: str, quantization: str = "nf4", kernels: str = "auto") -> LoadedModel:
        return load_tiny(tiny_model(family), quantization=quantization, kernels=kernels)

    return load


@pytest.mark.parametrize("quantization", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "qwen2"])
def test_every_linear_of_a_base_is_compiled(
    family: str, quantization: str, load: Callable[..., LoadedModel]
) -> None:
    loaded = load(family, quantization)
    mine = [m for m in loaded.model.modules() if isinstance(m, CompiledLinear)]
    assert len(mine) >= 8
    assert not any(quantize.is_quantized(m) for m in loaded.model.modules())
    assert loaded.model.get_output_embeddings() in mine
    parts = loaded.memory["quantized_linears"] + loaded.memory["output_head"]
    assert parts == sum(module.nbytes for module in mine)
    weights = sum(module.in_features * module.out_features for module in mine)
    # Small matrices: the numbers of each output count more than in a real base.
    least = 1.0 if quantization == "int8" else 0.5
    assert least * weights < parts < (least + 0.35) * weights


@pytest.mark.parametrize("quantization", KINDS)
def test_the_answers_are_those_without_it(
    quantization: str, load: Callable[..., LoadedModel]
) -> None:
    mine = load("llama", quantization).model
    theirs = load("llama", quantization, kernels="torch").model
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(2))
    off = (mine(ids).logits.log_softmax(-1) - theirs(ids).logits.log_softmax(-1)).abs()
    assert 0 < float(off.mean()) < 0.1


def test_torch_alone_keeps_bitsandbytes(load: Callable[..., LoadedModel]) -> None:
    loaded = load("llama", kernels="torch")
    assert any(quantize.is_quantized(module) for module in loaded.model.modules())


@pytest.mark.parametrize("when", ["always", "with many tokens"])
def test_a_wrong_product_is_not_used(
    when: str, load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Multiplier.__call__

    def wrong(self: Multiplier, linear: structs.Linear, x: torch.Tensor) -> torch.Tensor:
        if when == "always":
            return torch.zeros(*x.shape[:-1], linear.out)
        # In the last bit.
        return right(self, linear, x) * (1 + 2**-23 if len(x) >= 8 else 1)

    monkeypatch.setattr(Multiplier, "__call__", wrong)
    loaded = load("llama")
    assert not any(isinstance(module, CompiledLinear) for module in loaded.model.modules())


def test_a_model_without_4_bit_linears_is_left(
    load: Callable[..., LoadedModel], built: ctypes.CDLL
) -> None:
    loaded = load("llama", "none")
    before = digest_of_base(loaded.model)
    assert not replace_linears(loaded.model, built)
    assert digest_of_base(loaded.model) == before


def test_the_weights_are_those_that_were_packed(built: ctypes.CDLL) -> None:
    source = four_bits_of(128, 48, bias=True)
    expected, dense = dict(source.base_tensors()), dense_weight(source)
    linear = CompiledLinear(pack(source), 48, Multiplier(built, 128, 2))
    now = linear.base_tensors()
    assert expected.keys() == now.keys()
    assert all(torch.equal(expected[name], now[name]) for name in expected)
    assert torch.equal(dense_weight(linear), dense)
    x = torch.randn(2, 70, 128, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(linear(x), source(x), atol=1e-4 * float(source(x).abs().max()))
    shared = copy.deepcopy(linear)
    assert shared.packed is linear.packed


def test_products_are_cut_to_the_memory(built: ctypes.CDLL) -> None:
    linear = CompiledLinear(pack(four_bits_of(64, 32)), 32, Multiplier(built, 64, 1))
    x_TI = torch.randn(3 * multiplier.ROWS + 1, 64)
    rows = [linear(row) for row in x_TI]
    assert torch.equal(linear(x_TI), torch.stack(rows))
