"""Quantized experts: their numbers, their products, and that nothing else of them is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig

from lorry.errors import ModelError
from lorry.model import int8
from lorry.model.expert_layouts import PROJECTIONS
from lorry.model.expert_stacks import Int8Stack, PlainStack, quantized
from lorry.model.experts import IMPLEMENTATION, quantize_experts, stacks_of
from lorry.model.layout import layout_of
from lorry.model.memory import digest_of_base
from lorry.model.quantize import resolve
from lorry.settings import Settings
from lorry_adapters.lora.expert_effects import Runs
from support import tiny
from support.executor_driver import load_tiny

KINDS = ["int8", "nf4", "fp4"]
FAMILIES = ["mixtral", "qwen2_moe", "qwen3_moe"]
SHAPE = (5, 48, 128)
EVERY: Runs = [(0, 0, 3), (3, 3, 4), (4, 4, 9)]
"""Of nine rows; two of the five experts have none."""


def weights(*shape: int) -> Tensor:
    """With a row that is much louder than the others."""
    made = torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(1))
    made[-1, 7] *= 30
    return made


def rows(count: int = 9, width: int = SHAPE[2]) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(2))


def expected(dense_EOI: Tensor, x_SI: Tensor, every: Runs = EVERY) -> Tensor:
    return torch.cat([x_SI[first:last] @ dense_EOI[e].T for e, first, last in every])


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_four_bits_are_bitsandbytes(kind: str, double: bool) -> None:
    weight_EOI = weights()
    found_EOI = quantized(weight_EOI, kind, double_quant=double).dense_weight()
    for found_OI, weight_OI in zip(found_EOI, weight_EOI, strict=True):
        codes, state = quantize_4bit(
            weight_OI, blocksize=64, compress_statistics=double, quant_type=kind
        )
        theirs_OI = dequantize_4bit(codes, state)
        # Levels are whole numbers of up to 7 bits: `four_bit`.
        off = (found_OI - theirs_OI).abs().view(48, 2, 64).amax(2)
        assert (off <= 0.005 * weight_OI.abs().view(48, 2, 64).amax(2)).all()


def test_eight_bits_are_rounded_row_by_row() -> None:
    weight_EOI = weights()
    off_EOI = (quantized(weight_EOI, "int8", double_quant=True).dense_weight() - weight_EOI).abs()
    assert (off_EOI <= 0.5001 * weight_EOI.abs().amax(2, keepdim=True) / 127).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_is_that_of_the_dequantized_weights(kind: str) -> None:
    stack, x_SI = quantized(weights(), kind, double_quant=True), rows()
    exact_SO = expected(stack.dense_weight(), x_SI)
    torch.testing.assert_close(stack(x_SI, EVERY), exact_SO, rtol=1e-5, atol=1e-5)
    halves = stack(x_SI.bfloat16(), EVERY)
    assert halves.dtype is torch.bfloat16
    torch.testing.assert_close(halves.float(), exact_SO, rtol=0.05, atol=0.5)


@pytest.mark.skipif(not int8.available(), reason="this torch has no fbgemm (not an x86 processor)")
def test_integers_are_multiplied_where_there_is_a_kernel() -> None:
    plain, x_SI = quantized(weights(), "int8", double_quant=True), rows()
    stack = Int8Stack(plain)
    assert torch.equal(stack.dense_weight(), plain.dense_weight())
    exact_SO = expected(plain.dense_weight(), x_SI)
    error = (stack(x_SI, EVERY) - exact_SO).norm() / exact_SO.norm()
    assert 0 < float(error) < 1e-3


def test_blocks_that_are_not_whole_are_kept_in_8_bits() -> None:
    stack = quantized(weights(3, 16, 96), "nf4", double_quant=True)
    assert stack.shape == (3, 16, 96) and "levels" not in stack.base_tensors()


def test_copies_share_the_weights() -> None:
    stack = quantized(weights(), "nf4", double_quant=True)
    assert copy.deepcopy(stack) is stack


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_base_has_stacks_and_nothing_else_of_them(
    family: str, kind: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each is quantized when it has been read, not when all have been.
    monkeypatch.setattr("lorry.model.base_loader.quantize_experts", lambda *_: None)
    loaded = load_tiny(tiny_model(family), quantization=kind)
    assert not [n for n, p in loaded.model.named_parameters() if p.ndim == 3]
    stacks = list(stacks_of(loaded.model))
    assert len(stacks) == 4
    assert loaded.memory["experts"] == sum(stack.nbytes for _, _, stack in stacks)
    assert loaded.config._experts_implementation == IMPLEMENTATION
    theirs = tiny.build_model(family)
    assert loaded.layout.parameters == layout_of(theirs, loaded.name).parameters
    for module, name, stack in stacks:
        (path,) = [p for p, m in loaded.model.named_modules() if m is module]
        weight_EOI = getattr(theirs.get_submodule(path), name)
        wanted = quantized(weight_EOI, kind, double_quant=True).dense_weight()
        assert torch.equal(stack.dense_weight(), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_running_leaves_every_byte_as_it_was(kind: str, tiny_model: Callable[[str], Path]) -> None:
    loaded = load_tiny(tiny_model("mixtral"), quantization=kind)
    before = digest_of_base(loaded.model)
    assert any("experts.gate_up_proj.codes" in name for name in before)
    with torch.inference_mode():
        loaded.model(torch.arange(20)[None])
    assert digest_of_base(loaded.model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_stored_the_other_way_round_and_with_biases(kind: str) -> None:
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["full_attention"] * 2,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tiny.fill(model, seed=3)
    before = layout_of(model, "gpt-oss")
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(module, name, None)
            if isinstance(weight, Tensor):
                stack = quantized(weight.data.transpose(1, 2), kind, double_quant=True)
                weight.data.copy_(stack.dense_weight().transpose(1, 2))
    quantize_experts(model, resolve(Settings(device="cpu", quantize=kind)))
    assert all(isinstance(stack, PlainStack) for _, _, stack in stacks_of(model))
    assert layout_of(model, "gpt-oss").parameters == before.parameters
    with torch.inference_mode():
        ids = torch.arange(2, 22)[None]
        torch.testing.assert_close(model(ids).logits, rounded(ids).logits, rtol=1e-4, atol=1e-4)


def test_without_quantization_they_stay_transformers(tiny_model: Callable[[str], Path]) -> None:
    loaded = load_tiny(tiny_model("mixtral"))
    assert not list(stacks_of(loaded.model))
    assert len([n for n, p in loaded.model.named_parameters() if p.ndim == 3]) == 4
    assert loaded.memory["experts"] == sum(
        p.nbytes for p in loaded.model.parameters() if p.ndim == 3
    )


def test_files_with_experts_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = tiny.save_model("mixtral", tmp_path)
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"num_local_experts": 4', '"num_local_experts": 3')
    )
    with pytest.raises(ModelError):
        load_tiny(folder, quantization="int8")


def test_a_stack_is_no_linear_that_an_adapter_could_name(
    tiny_model: Callable[[str], Path],
) -> None:
    loaded = load_tiny(tiny_model("mixtral"), quantization="int8")
    assert not [name for name in loaded.layout.modules if name.endswith(PROJECTIONS)]
