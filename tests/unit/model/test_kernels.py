"""bitsandbytes' int8 modules on our kernel: the same integers, and only where it can be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorry.model import int8
from lorry.model.int8 import Int8Linear
from lorry.model.kernels import use_int8_kernels
from support import tiny
from support.executor_driver import load_tiny

pytestmark = pytest.mark.skipif(
    not int8.available(), reason="this torch has no fbgemm (not an x86 processor)"
)

FAMILIES = ["llama", "gpt2", "phi3"]


@pytest.fixture
def quantized(tiny_model: Callable[[str], Path]) -> Callable[..., Any]:
    def load(family: str, *, threshold: float = 0.0, dtype: torch.dtype = torch.float32) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            tiny_model(family),
            dtype=dtype,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold),
        ).eval()

    return load


@pytest.mark.parametrize("family", FAMILIES)
def test_every_code_and_scale_is_bitsandbytes(family: str, quantized: Callable[..., Any]) -> None:
    model = quantized(family)
    theirs = {n: m for n, m in model.named_modules() if isinstance(m, Linear8bitLt)}
    head = model.get_output_embeddings()
    assert use_int8_kernels(model) == len(theirs) + 1
    assert len(theirs) >= 8
    for name, module in theirs.items():
        mine = model.get_submodule(name)
        assert isinstance(mine, Int8Linear)
        tensors = mine.base_tensors()
        assert torch.equal(tensors["codes"], module.weight.CB)
        assert torch.equal(tensors["scale"], (module.weight.SCB / 127).double())
        assert (mine.bias is None) == (module.bias is None)
        if module.bias is not None:
            assert torch.equal(mine.bias, module.bias.float())
    mine = model.get_output_embeddings()
    assert isinstance(mine, Int8Linear)
    check_head(mine, head)


def test_loaded_as_the_server_does_it_they_are_the_same(
    quantized: Callable[..., Any], tiny_model: Callable[[str], Path]
) -> None:
    """There, bitsandbytes has moved its scales before we come."""
    theirs = {n: m for n, m in quantized("qwen2").named_modules() if isinstance(m, Linear8bitLt)}
    ours = load_tiny(tiny_model("qwen2"), quantization="int8").model
    for name, module in theirs.items():
        mine = ours.get_submodule(name)
        assert isinstance(mine, Int8Linear)
        assert torch.equal(mine.base_tensors()["codes"], module.weight.CB)
        assert torch.equal(mine.base_tensors()["scale"], (module.weight.SCB / 127).double())


def check_head(mine: Int8Linear, head: nn.Linear) -> None:
    """Rounded row by row to 127 codes: no weight is off by more than half of one."""
    tensors = mine.base_tensors()
    scale_O1 = tensors["scale"].unsqueeze(1)
    error_OI = tensors["codes"].double() * scale_O1 - head.weight.detach().double()
    assert (error_OI.abs() <= scale_O1 * 0.5001).all()
    assert tensors["codes"].abs().amax(1).eq(127).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_product_is_that_of_the_dequantized_weights(
    family: str, quantized: Callable[..., Any]
) -> None:
    model = quantized(family)
    name, module = next((n, m) for n, m in model.named_modules() if isinstance(m, Linear8bitLt))
    weight_OI = module.weight.CB.double() * (module.weight.SCB.double() / 127).unsqueeze(1)
    bias = 0 if module.bias is None else module.bias.detach().double()
    use_int8_kernels(model)
    x_TI = torch.randn(9, weight_OI.shape[1], generator=torch.Generator().manual_seed(0))
    expected_TO = x_TI.double() @ weight_OI.t() + bias
    error_TO = model.get_submodule(name)(x_TI).double() - expected_TO
    assert float(error_TO.norm() / expected_TO.norm()) < 1e-3


def test_a_tied_head_leaves_the_embeddings_alone(quantized: Callable[..., Any]) -> None:
    model = quantized("gpt2")
    before = model.get_input_embeddings().weight.detach().clone()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    use_int8_kernels(model)
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_outliers_in_half_precision_stay_with_bitsandbytes(quantized: Callable[..., Any]) -> None:
    """A threshold asks for another arithmetic than ours."""
    model = quantized("llama", threshold=6.0)
    assert use_int8_kernels(model) == 1
    assert any(isinstance(module, Linear8bitLt) for module in model.modules())


def test_other_activations_than_fp32_stay_with_bitsandbytes(quantized: Callable[..., Any]) -> None:
    model = quantized("llama", dtype=torch.bfloat16)
    assert use_int8_kernels(model) == 0


def test_without_the_kernel_nothing_is_replaced(
    quantized: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "available", lambda: False)
    model = quantized("llama")
    before = {name: type(module) for name, module in model.named_modules()}
    assert use_int8_kernels(model) == 0
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_a_head_of_zeros_stays_zero() -> None:
    head = nn.Linear(8, 4, bias=False)
    nn.init.zeros_(head.weight)

    class Model(nn.Module):
        dtype = torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def get_input_embeddings(self) -> nn.Module:
            return nn.Embedding(4, 8)

    model = copy.deepcopy(Model())
    assert use_int8_kernels(model) == 1  # type: ignore[arg-type]
    assert torch.equal(model.head(torch.randn(2, 8)), torch.zeros(2, 4))


def test_linears_of_a_class_of_their_own_are_rounded_too(tmp_path: Path) -> None:
    """transformers leaves Falcon's as they are: three quarters of the memory would be theirs."""
    model = load_tiny(tiny.save_model("falcon", tmp_path), quantization="int8").model
    linears = [m for m in model.modules() if isinstance(m, nn.Linear | Int8Linear)]
    assert len(linears) == 9
    assert all(isinstance(linear, Int8Linear) for linear in linears)


def test_a_linear_that_does_more_is_left_alone(quantized: Callable[..., Any]) -> None:
    class Doubling(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = quantized("llama")
    model.model.more = Doubling(16, 16)
    use_int8_kernels(model)
    assert type(model.model.more) is Doubling
