"""An adapter's tensors: all that PEFT saves is read back exactly, every lie is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.layers import LoraModel
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE, inspect, load
from support import tiny
from support.peft_adapters import VARIANTS, edit_config
from support.spoilt import Edit, Tensors, problems, spoil
from support.tokenizer import VOCAB_SIZE

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
"""[64, 64] in the tiny llama; k_proj and v_proj are [32, 64]."""


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "phi3"])
def test_reads_what_peft_saves(
    family: str,
    variant: str,
    peft_adapter: Callable[..., Path],
    layout: Callable[[str], BaseLayout],
) -> None:
    folder = peft_adapter(family, variant)
    facts = inspect(folder, layout(family), 64)
    weights = load(folder, "sha256:x", layout(family))
    truth = PeftModel.from_pretrained(tiny.build_model(family), folder)
    expected = {
        name.removeprefix("base_model.model."): module
        for name, module in truth.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert set(weights.modules) == set(expected)
    for name, pair in weights.modules.items():
        module = expected[name]
        assert torch.equal(pair.a_RI, module.lora_A["default"].weight)
        assert torch.equal(pair.b_OR, module.lora_B["default"].weight)
        assert pair.scaling == module.scaling["default"]
    tensors = load_file(folder / WEIGHTS_FILE).values()
    assert facts.parameters == sum(tensor.numel() for tensor in tensors)
    assert facts.bytes == weights.bytes == sum(tensor.nbytes for tensor in tensors)
    assert facts.rank == weights.rank == max(module.r["default"] for module in expected.values())
    assert facts.peft_type == "LORA"
    assert facts.target_modules == tuple(sorted({name.split(".")[-1] for name in expected}))
    assert (
        facts.base_model
        == json.loads((folder / CONFIG_FILE).read_text())["base_model_name_or_path"]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_stay_as_stored(adapter: Path, llama: BaseLayout, dtype: torch.dtype) -> None:
    spoil(adapter, lambda t: t.update({key: value.to(dtype) for key, value in t.items()}))
    stored = load_file(adapter / WEIGHTS_FILE)
    inspect(adapter, llama, 64)
    pair = load(adapter, "d", llama).modules["model.layers.0.self_attn.q_proj"]
    assert pair.a_RI.dtype == pair.b_OR.dtype == dtype
    assert torch.equal(pair.a_RI, stored[f"{Q0}.lora_A.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_types_that_nobody_computes_in(
    adapter: Path, llama: BaseLayout, dtype: torch.dtype
) -> None:
    spoil(adapter, lambda t: t.update({key: value.to(dtype) for key, value in t.items()}))
    inspect(adapter, llama, 64)
    pair = load(adapter, "d", llama).modules["model.layers.0.self_attn.q_proj"]
    assert pair.a_RI.dtype == torch.float32
    assert torch.equal(pair.a_RI, load_file(adapter / WEIGHTS_FILE)[f"{Q0}.lora_A.weight"].float())


def test_tensors_outlive_their_file(adapter: Path, llama: BaseLayout) -> None:
    expected = load_file(adapter / WEIGHTS_FILE)[f"{Q0}.lora_A.weight"].clone()
    weights = load(adapter, "d", llama)
    path = adapter / WEIGHTS_FILE
    # In place: a mapping would show the zeros; cut short, reading it would kill the process.
    with path.open("r+b") as file:
        file.write(bytes(os.path.getsize(path)))
        file.truncate(0)
    path.unlink()
    pair = weights.modules["model.layers.0.self_attn.q_proj"]
    assert torch.equal(pair.a_RI, expected)
    starts = {
        p.untyped_storage().data_ptr() for m in weights.modules.values() for p in (m.a_RI, m.b_OR)
    }
    assert len(starts) == 2 * len(weights.modules)


def _renamed(pattern: str) -> Edit:
    def change(tensors: Tensors) -> None:
        for key in list(tensors):
            module, half = key.removeprefix("base_model.model.").rsplit(".lora_", 1)
            half = half.removesuffix(".weight")
            tensors[pattern.format(module=module, half=half)] = tensors.pop(key)

    return change


@pytest.mark.parametrize(
    "pattern",
    [
        "base_model.model.{module}.lora_{half}.default.weight",
        "{module}.lora_{half}.weight",
        "{module}.lora_{half}.my-adapter_1.weight",
    ],
)
def test_known_wild_keys(pattern: str, adapter: Path, llama: BaseLayout) -> None:
    expected = load(adapter, "d", llama)
    spoil(adapter, _renamed(pattern))
    inspect(adapter, llama, 64)
    found = load(adapter, "d", llama)
    assert set(found.modules) == set(expected.modules)
    for name, pair in found.modules.items():
        assert torch.equal(pair.b_OR, expected.modules[name].b_OR)


A, B = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
NAN = torch.full((8, 64), 1.0)
NAN[3, 3] = float("nan")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(B), ["q_proj' has lora_A and no lora_B", "targets 1 modules that the"]),
        (lambda t: t.pop(A), ["q_proj' has lora_B and no lora_A", "targets 1 modules that the"]),
        (lambda t: (t.pop(A), t.pop(B)), ["targets 1 modules that the file lacks: model.layers.0"]),
        (lambda t: t.clear(), ["contains no tensors", "that the file lacks"]),
        (
            lambda t: t.update({A: t[A][:, :63].contiguous()}),
            ["is [8, 63]; this base needs [rank, 64]"],
        ),
        (
            lambda t: t.update({B: t[B][:63].contiguous()}),
            ["is [63, 8]; this base needs [64, rank]"],
        ),
        (lambda t: t.update({A: t[A].T.contiguous(), B: t[B].T.contiguous()}), ["is [64, 8]"]),
        (lambda t: t.update({A: t[A][None]}), ["is [1, 8, 64]"]),
        (lambda t: t.update({A: torch.zeros(0, 64)}), ["is [0, 64]"]),
        (lambda t: t.update({A: t[A][:4].contiguous()}), ["lora_A has rank 4, lora_B has rank 8"]),
        (
            lambda t: t.update({A: t[A][:4].contiguous(), B: t[B][:, :4].contiguous()}),
            ["has rank 4 in the file and 8 in the config"],
        ),
        (
            lambda t: t.update({A: t[A].to(torch.int8)}),
            ["is I8; adapters are served in F32, F16, BF16, F64, F8_E4M3, F8_E5M2"],
        ),
        (lambda t: t.update({A: NAN}), ["contains NaN or infinite numbers"]),
        (lambda t: t.update({B: t[B] * float("inf")}), ["contains NaN or infinite numbers"]),
        (lambda t: t.update({"what.is.this": t[A].clone()}), ["weights of the base itself"]),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(4, 64)}),
            ["lm_head.weight' is [4, 64]; this base needs [384, 64]"],
        ),
        (
            lambda t: t.update({f"{Q0}.lora_magnitude_vector": torch.ones(64)}),
            ["lora_magnitude_vector, but the config has no use_dora"],
        ),
        (
            lambda t: t.update({f"{Q0}.lora_B.bias": torch.ones(64)}),
            ["lora_B.bias, but the config has no lora_bias"],
        ),
        (lambda t: t.update({f"{Q0}.lora_C.weight": torch.ones(64)}), ["unexpected key; expected"]),
        (
            lambda t: t.update(
                {
                    "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(8, 9),
                    "base_model.model.model.embed_tokens.lora_embedding_B": torch.ones(64, 8),
                }
            ),
            ["is [8, 9]; this base needs [rank, 384]", "does not target: model.embed_tokens"],
        ),
        (
            lambda t: t.update(
                {
                    "base_model.model.model.embed_tokens.lora_A.weight": torch.ones(8, 9),
                    "base_model.model.model.embed_tokens.lora_B.weight": torch.ones(64, 8),
                }
            ),
            ["'model.embed_tokens' is an embedding"],
        ),
        (
            lambda t: t.update({"base_model.model.model.norm.lora_A.weight": torch.ones(8, 64)}),
            ["'model.norm' is not a linear module"],
        ),
        (
            lambda t: t.update(
                {k.replace("layers.1", "layers.9"): v.clone() for k, v in t.items()}
            ),
            ["the file has 7 modules that the base tiny-llama does not have: model.layers.9"],
        ),
        (
            lambda t: t.update(
                {
                    "base_model.model.lm_head.lora_A.weight": torch.ones(8, 64),
                    "base_model.model.lm_head.lora_B.weight": torch.ones(VOCAB_SIZE, 8),
                }
            ),
            ["the file has 1 modules that the config does not target: lm_head"],
        ),
        (
            lambda t: t.update({f"{Q0}.lora_A.default.weight": t[A].clone()}),
            ["name the same tensor", "more than one adapter: lora_A, lora_A.default"],
        ),
        (
            lambda t: t.update({A.removeprefix("base_model.model."): t[A].clone()}),
            ["name the same tensor"],
        ),
    ],
)
def test_every_fault_is_told(
    change: Edit, said: list[str], adapter: Path, llama: BaseLayout
) -> None:
    spoil(adapter, change)
    found = problems(adapter, llama)
    assert len(found) == len(said), found
    for text in said:
        assert any(text in problem for problem in found), found


def test_all_faults_at_once(adapter: Path, llama: BaseLayout) -> None:
    edit_config(adapter, arrow_config={"top_k": 2}, bias="some")
    spoil(adapter, lambda t: (t.pop(B), t.update({f"{Q0[:-6]}k_proj.lora_A.weight": NAN})))
    found = problems(adapter, llama)
    assert len(found) == 4
    for text in ("Arrow", "bias is 'some'", "no lora_B", "NaN"):
        assert any(text in problem for problem in found)


def test_the_rank_limit(adapter: Path, llama: BaseLayout) -> None:
    inspect(adapter, llama, 8)
    (problem,) = problems(adapter, llama, max_rank=7)
    assert "rank 8 is over this server's limit of 7" in problem


def test_another_base(adapter: Path, layout: Callable[[str], BaseLayout]) -> None:
    found = problems(adapter, layout("gpt2"))
    assert len(found) == 2
    assert "the adapter has model.layers.0.mlp.down_proj" in found[0]
    assert "GPT2LMHeadModel" in found[0]
    assert "the base has transformer.h.0.attn.c_attn" in found[0]
    assert "target_modules is [" in found[1]


def test_targeting_an_embedding(adapter: Path, llama: BaseLayout) -> None:
    config = json.loads((adapter / CONFIG_FILE).read_text())
    edit_config(adapter, target_modules=[*config["target_modules"], "embed_tokens", "norm"])
    found = problems(adapter, llama)
    assert [p for p in found if "the file lacks: model.embed_tokens" in p]
    assert [p for p in found if "'model.norm' is not a linear module" in p]


def test_missing_files_are_told_together(llama: BaseLayout, tmp_path: Path) -> None:
    assert problems(tmp_path, llama) == (
        "adapter_config.json is missing",
        "adapter_model.safetensors is missing",
    )


def test_a_thousand_faults_end(adapter: Path, llama: BaseLayout) -> None:
    spoil(adapter, lambda t: t.update({f"x{i}": torch.ones(1) for i in range(1000)}))
    found = problems(adapter, llama)
    assert len(found) == 51
    assert found[-1] == "and 950 more problems"


def test_load_notices_what_has_changed(adapter: Path, llama: BaseLayout) -> None:
    path = adapter / WEIGHTS_FILE
    with path.open("r+b") as file:
        file.truncate(os.path.getsize(path) - 1)
    with pytest.raises(InvalidAdapter):
        load(adapter, "d", llama)


def test_the_head_is_an_ordinary_target(
    peft_adapter: Callable[..., Path], layout: Callable[[str], BaseLayout]
) -> None:
    weights = load(peft_adapter("llama", "head"), "d", layout("llama"))
    assert "lm_head" in weights.modules


@pytest.mark.parametrize("trained", [False, True])
def test_a_head_saved_with_a_copy_of_the_base_is_a_plain_adapter(
    trained: bool, tiny_model: Callable[[str], Path], llama: BaseLayout, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], init_lora_weights=False)
    model = get_peft_model(base, config)
    if trained:
        model.get_base_model().lm_head.base_layer.weight.data[3, 3] += 1
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    inspect(tmp_path, llama, 64)
    served = LoraModel(
        AutoModelForCausalLM.from_pretrained(tiny_model("llama")),
        llama,
        num_slots=1,
        max_rank=8,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    assert served.prepare(load(tmp_path, "d", llama)).plain is not trained


def test_an_adapter_that_changes_nothing_is_refused(adapter: Path, llama: BaseLayout) -> None:
    spoil(adapter, lambda t: t.update({k: v * 0 for k, v in t.items() if "lora_B" in k}))
    (problem,) = problems(adapter, llama)
    assert "changes nothing" in problem


def test_endless_keys_and_names_take_no_time(adapter: Path, llama: BaseLayout) -> None:
    """Each would take hours where the work grew with the square of what a stranger wrote."""
    parts = ("base_model.model.", "modules_to_save.", "_orig_mod.", "lora_A.", "token_adapter.")
    long = {f"{part * (200_000 // len(part))}weight": torch.ones(1) for part in parts}
    spoil(adapter, lambda t: t.update(long))
    edit_config(adapter, modules_to_save=[f"no{i}" for i in range(100_000)])
    assert problems(adapter, llama)
