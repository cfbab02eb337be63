"""Quantized bases: every family runs, close to its float32 self, and never changes again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear8bitLt
from transformers import BitsAndBytesConfig, LlamaConfig, PreTrainedModel

from lorry.errors import ModelError, UnsupportedModel
from lorry.model.base_loader import LoadedModel, load
from lorry.model.memory import PARTS, digest_of_base, memory_by_part
from lorry.model.quantize import (
    Quantization,
    bitsandbytes_config,
    fitting,
    resolve,
    rounds_activations,
    stored_quantization,
)
from lorry.settings import Settings
from support.families import REQUIRED
from support.tiny import build_model, family, save_model

IDS = torch.arange(20, 60).reshape(2, 20)


def load_tiny(folder: Path, quantize: str, **more: object) -> LoadedModel:
    settings = Settings(
        model=str(folder),
        home=folder,
        quantize=quantize,
        device="cpu",
        **more,  # type: ignore[arg-type]
    )
    return load(settings, lambda _: None)


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits.float()


@pytest.mark.parametrize("name", REQUIRED)
def test_every_family_runs_in_every_quantization(name: str, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path / name)
    model = build_model(name)
    # Some releases' fused attention leaves gemma2's soft cap out.
    model.set_attn_implementation("eager")
    truth = logits_of(model)
    spread = truth.std()
    for quantize, tolerance in (("none", 1e-5), ("int8", 0.2), ("nf4", 0.8), ("fp4", 1.0)):
        loaded = load_tiny(folder, quantize)
        assert loaded.quantization == quantize
        assert loaded.dtype == torch.float32 and loaded.device.type == "cpu"
        found = logits_of(loaded.model)
        error = (found - truth).square().mean().sqrt() / spread
        assert error <= tolerance, (quantize, float(error))
        assert (error > 1e-5) == (quantize != "none"), "the weights were really quantized"


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4"])
def test_the_base_is_frozen_and_no_forward_pass_changes_a_byte(
    quantize: str, tmp_path: Path
) -> None:
    loaded = load_tiny(save_model("gpt2", tmp_path / "m"), quantize)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not hasattr(loaded.model, "_hf_hook"), "accelerate keeps its hands off"
    before = digest_of_base(loaded.model)
    logits_of(loaded.model)
    logits_of(loaded.model)
    assert digest_of_base(loaded.model) == before
    assert memory_by_part(loaded.model) == loaded.memory


@torch.inference_mode()
def test_the_digest_sees_one_changed_number(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "m")
    layer = "model.layers.0.mlp.up_proj"
    for quantize in ("none", "nf4"):
        model = load_tiny(folder, quantize).model
        before = digest_of_base(model)
        module = model.get_submodule(layer)
        module.weight.data.view(-1)[3] += 1
        after = digest_of_base(model)
        assert changed(before, after) == {f"{layer}.weight"}
        if quantize == "nf4":
            module.weight.quant_state.absmax.view(-1)[0] += 1
            assert changed(after, digest_of_base(model)) == {f"{layer}.weight.absmax"}
    # bitsandbytes' own int8 module, which serves on CUDA.
    module = Linear8bitLt(64, 64, has_fp16_weights=False).to("cpu")
    before = digest_of_base(module)
    assert set(before) == {"weight", "bias", "weight.scales"}
    module.weight.SCB[0] += 1
    assert changed(before, digest_of_base(module)) == {"weight.scales"}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, digest in after.items() if before[name] != digest}


def test_a_shape_that_the_cpu_packing_cannot_hold_still_runs(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    from support.tokenizer import VOCAB_SIZE, build_tokenizer

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        intermediate_size=72,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "odd")
    build_tokenizer(add_bos=False).save_pretrained(tmp_path / "odd")
    loaded = load_tiny(tmp_path / "odd", "nf4")
    before = digest_of_base(loaded.model)
    assert logits_of(loaded.model).isfinite().all()
    assert digest_of_base(loaded.model) == before


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_row_does_not_depend_on_its_neighbours(quantize: str, tmp_path: Path) -> None:
    """int8 with a threshold would: an outlier in one row changes the columns of all."""
    loaded = load_tiny(save_model("llama", tmp_path / "m"), quantize)
    layer = loaded.model.get_submodule("model.layers.1.mlp.down_proj")
    generator = torch.Generator().manual_seed(0)
    x_TI = torch.randn(9, layer.in_features, generator=generator)
    x_TI[1:] *= 100
    with torch.inference_mode():
        torch.testing.assert_close(layer(x_TI)[:1], layer(x_TI[:1]), rtol=1e-6, atol=1e-6)


def test_memory_is_reported_by_part_and_tied_weights_once(tmp_path: Path) -> None:
    sizes = {}
    for quantize in ("none", "int8", "nf4"):
        memory = load_tiny(save_model("gpt2", tmp_path / quantize), quantize).memory
        assert tuple(memory) == PARTS
        sizes[quantize] = memory
    model = build_model("gpt2")
    parameters = sum(p.nbytes for p in model.parameters())
    buffers = sum(b.nbytes for b in model.buffers())
    assert sum(sizes["none"].values()) == parameters + buffers
    assert sizes["none"]["output_head"] == 0, "tied: it is the embeddings"
    embeddings = model.transformer.wte.weight.nbytes + model.transformer.wpe.weight.nbytes
    assert sizes["none"]["embeddings"] == embeddings
    assert sizes["none"]["quantized_linears"] == 0 < sizes["none"]["linears"]
    assert sizes["int8"]["linears"] == 0
    full = sizes["none"]["linears"]
    assert sizes["nf4"]["quantized_linears"] < sizes["int8"]["quantized_linears"] < full / 3
    untied = load_tiny(save_model("llama", tmp_path / "llama"), "none").memory
    head = family("llama").config()
    assert untied["output_head"] == untied["embeddings"] == head.vocab_size * head.hidden_size * 4


def test_auto_is_int8_on_a_cpu_and_nf4_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    precision = resolve(Settings(device="cpu"))
    assert (precision.quantization, precision.dtype) == (Quantization.INT8, torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    precision = resolve(Settings())
    assert (precision.quantization, precision.dtype) == (Quantization.NF4, torch.bfloat16)
    assert str(precision.device) == "cuda:0"
    assert resolve(Settings(device="cpu")).device.type == "cpu"


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="--device cuda: PyTorch sees no CUDA device"):
        resolve(Settings(device="cuda"))


def test_the_options_reach_bitsandbytes() -> None:
    settings = Settings(quantize="fp4", device="cpu", bnb_4bit_double_quant=False, dtype="bfloat16")
    config = bitsandbytes_config(resolve(settings))
    assert config is not None
    assert config.bnb_4bit_quant_type == "fp4"
    assert config.bnb_4bit_use_double_quant is False
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    config = bitsandbytes_config(
        resolve(Settings(quantize="int8", device="cpu", int8_threshold=6.0))
    )
    assert config is not None and config.llm_int8_threshold == 6
    assert bitsandbytes_config(resolve(Settings(quantize="none", device="cpu"))) is None


def test_double_quantization_takes_less_memory(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "m")
    layer = "model.layers.0.mlp.up_proj"
    state = load_tiny(folder, "nf4").model.get_submodule(layer).weight.quant_state
    assert getattr(state, "original_nested", state.nested) is True
    plain = load_tiny(folder, "nf4", bnb_4bit_double_quant=False)
    state = plain.model.get_submodule(layer).weight.quant_state
    assert getattr(state, "original_nested", state.nested) is False


def test_a_checkpoint_that_is_already_quantized(tmp_path: Path) -> None:
    config = LlamaConfig()
    assert stored_quantization(config, "auto") is None
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UnsupportedModel, match="already quantized with gptq"):
        stored_quantization(config, "auto")
    config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4"
    ).to_dict()
    assert stored_quantization(config, "auto") is Quantization.NF4
    assert stored_quantization(config, "nf4") is Quantization.NF4
    with pytest.raises(UnsupportedModel, match=r"--quantize int8: .* already quantized as nf4"):
        stored_quantization(config, "int8")


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_bitsandbytes_checkpoint_loads_as_it_is(quantize: str, tmp_path: Path) -> None:
    import transformers

    from support.tokenizer import build_tokenizer

    plain = save_model("llama", tmp_path / "plain")
    precision = resolve(Settings(quantize=quantize, device="cpu"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, quantization_config=bitsandbytes_config(precision)
    )
    model.save_pretrained(tmp_path / "stored")
    build_tokenizer(add_bos=True).save_pretrained(tmp_path / "stored")
    stored = load_tiny(tmp_path / "stored", "auto")
    assert stored.quantization == quantize
    assert torch.equal(logits_of(stored.model), logits_of(load_tiny(plain, quantize).model))


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4"])
def test_a_4_bit_product_rounds_activations_where_the_processor_has_bfloat16(
    quantize: str, tiny_model: Callable[[str], Path]
) -> None:
    loaded = load_tiny(tiny_model("llama"), quantize)
    rounds = quantize == "int8" or (quantize == "nf4" and has_avx512bf16())
    assert rounds_activations(loaded.model) == rounds


@pytest.mark.parametrize(
    ("asked", "free", "expected"),
    [
        ("auto", 100 + 4 * 10 + 50, "int8"),
        ("auto", 100 + 4 * 10 + 50 - 1, "nf4"),
        ("fp4", 1, "fp4"),
        ("none", 1, "none"),
    ],
)
def test_a_base_that_does_not_fit_in_8_bits_is_kept_in_4(
    asked: str, free: int, expected: str
) -> None:
    precision = resolve(Settings(quantize=asked, device="cpu"))
    found, why = fitting(precision, weights=100, table=40, beside=50, free=free)
    assert found.quantization == expected
    assert (why is not None) == (expected == "nf4")
    if why is not None:
        assert "190 B" in why and "--quantize int8" in why


def test_auto_says_that_it_takes_4_bits(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    folder = tiny_model("llama")
    for cache, kind in ((1 << 20, "int8"), (1 << 50, "nf4")):
        settings = Settings(model=str(folder), home=folder, device="cpu", kv_cache_memory=cache)
        assert load(settings, said.append).quantization == kind
        told = [line for line in said if line.startswith("nf4 weights, since int8")]
        assert len(told) == (kind == "nf4")
