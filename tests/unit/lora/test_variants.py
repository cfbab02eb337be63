"""LoRA's relatives: what spoils their files, and what the matrix cannot build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.variants import QALoraLinearVariant
from safetensors.torch import load_file
from torch import Tensor

from lorry_adapters.lora import spot_check
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import WEIGHTS_FILE, inspect, load
from support import tiny
from support.peft_adapters import edit_config
from support.spoilt import spoil, told

CONFIGS: dict[str, dict[str, Any]] = {
    "kasa": {"kasa_config": KasaConfig()},
    "blocks in a": {"use_bdlora": BdLoraConfig(target_modules_bd_a=["k_proj"], nblocks=2)},
    "blocks in b": {"use_bdlora": BdLoraConfig(target_modules_bd_b=["attn.k"], nblocks=4)},
    "velora": {"velora_config": VeloraConfig(num_groups=8)},
    "monteclora": {"monteclora_config": MontecloraConfig()},
}
K1 = "model.layers.1.self_attn.k_proj"


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["k_proj"], r=8, **CONFIGS[request.param]
    )
    model = get_peft_model(tiny.build_model("llama"), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn_like(parameter) * 0.1
    model.save_pretrained(tmp_path)
    return tmp_path


def first(tensors: dict[str, Tensor], part: str) -> str:
    return next(key for key in sorted(tensors) if part in key)


@pytest.mark.parametrize("saved", CONFIGS, indirect=True)
def test_what_peft_saves_is_a_pair_of_the_linear_s_own_shape(
    saved: Path, llama: BaseLayout
) -> None:
    assert inspect(saved, llama, 64).rank == 8
    weights = load(saved, "d", llama)
    spot_check.check(saved, weights)
    pair = weights.modules[K1]
    assert (pair.a_RI.shape, pair.b_OR.shape) == ((8, 64), (32, 8))


@pytest.mark.parametrize("saved", ["blocks in a", "blocks in b"], indirect=True)
def test_blocks_lie_on_a_diagonal(saved: Path, llama: BaseLayout) -> None:
    pair, stored = load(saved, "d", llama).modules[K1], load_file(saved / WEIGHTS_FILE)
    for whole, half, blocks in ((pair.a_RI, "A", 2), (pair.b_OR, "B", 4)):
        part = stored[f"base_model.model.{K1}.lora_{half}.weight"]
        if part.shape != whole.shape:
            assert torch.equal(whole, torch.block_diag(*part.chunk(blocks)))
            return
    raise AssertionError("neither has blocks")


@pytest.mark.parametrize("saved", ["kasa"], indirect=True)
def test_beside_bitsandbytes_linears_it_is_plain(saved: Path, llama: BaseLayout) -> None:
    """PEFT takes no notice of `kasa_config` there."""
    assert load(saved, "d", llama).effects
    spoil(saved, lambda t: [t.pop(key) for key in list(t) if "diag" in key])
    inspect(saved, llama, 64)
    assert not load(saved, "d", llama).effects


SPOILT: list[tuple[str, Callable[[dict[str, Tensor]], object], str]] = [
    ("kasa", lambda t: t.pop(first(t, "diag")), "has no lora_diag, but other modules have one"),
    ("kasa", lambda t: t.update({first(t, "diag"): torch.ones(4)}), "this base needs [8]"),
    ("blocks in a", lambda t: t.update({first(t, "A"): torch.ones(8, 16)}), "needs [rank, 32]"),
    ("blocks in b", lambda t: t.update({first(t, "B"): torch.ones(32, 4)}), "4 columns, not 2"),
    ("velora", lambda t: t.update({first(t, "A"): torch.ones(8, 8)}), "needs [rank, 64]"),
]


@pytest.mark.parametrize(
    ("saved", "change", "said"),
    SPOILT,
    indirect=["saved"],
    ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(SPOILT)],
)
def test_what_spoils_a_file_is_told(
    saved: Path, llama: BaseLayout, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    spoil(saved, change)
    assert said in told(saved, llama)


BLOCKS = {"target_modules_bd_a": ["k_proj"], "target_modules_bd_b": None, "nblocks": 2}
CHANGED: list[tuple[str, dict[str, Any], str]] = [
    ("kasa", {"kasa_config": None}, "unexpected key"),
    ("kasa", {"kasa_config": [3]}, "kasa_config is [3]: must be an object"),
    ("kasa", {"kasa_config": {"beta": 1, "more": 2}}, "unknown key 'more'"),
    ("kasa", {"use_dora": True}, "with both kasa_config and use_dora"),
    ("kasa", {"velora_config": {"num_groups": 4}}, "with kasa_config and velora_config"),
    ("velora", {"velora_config": None}, "unexpected key"),
    ("velora", {"alora_invocation_tokens": [5]}, "velora_config and alora_invocation_tokens"),
    ("blocks in a", {"use_bdlora": None}, "needs [rank, 64]"),
    ("blocks in a", {"use_bdlora": {**BLOCKS, "nblocks": 4}}, "needs [rank, 16]"),
    ("blocks in a", {"use_bdlora": {**BLOCKS, "nblocks": 0}}, "nblocks is 0"),
    ("blocks in a", {"use_bdlora": {**BLOCKS, "target_modules_bd_b": ["k"]}}, "in both A and B"),
    ("blocks in a", {"use_bdlora": {**BLOCKS, "target_modules_bd_a": "k"}}, "must be a list"),
]


@pytest.mark.parametrize(
    ("saved", "changes", "said"),
    CHANGED,
    indirect=["saved"],
    ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(CHANGED)],
)
def test_what_a_config_cannot_mean_is_told(
    saved: Path, llama: BaseLayout, changes: dict[str, Any], said: str
) -> None:
    edit_config(saved, **changes)
    assert said in told(saved, llama)


@pytest.mark.parametrize("group", [4, 16, 64])
def test_qalora_is_what_peft_s_layer_computes(
    group: int, llama: BaseLayout, tmp_path: Path
) -> None:
    """PEFT puts it on GPTQ's linears only, which need a library of their own: here its layer's
    function is asked, on a plain one."""
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["k_proj"],
        r=4,
        use_qalora=True,
        qalora_group_size=group,
    )
    model = get_peft_model(tiny.build_model("llama"), config)
    layers = [module for name, module in model.named_modules() if name.endswith("k_proj")]
    for layer in layers:
        QALoraLinearVariant.init(layer, "default", config)
        layer.lora_A["default"].weight.data.normal_()
        layer.lora_B["default"].weight.data.normal_()
    model.eval().save_pretrained(tmp_path)
    x_MI = torch.randn(3, 64)
    expected_MO = QALoraLinearVariant.forward(layers[1], "default", x_MI, torch.zeros(3, 32))
    inspect(tmp_path, llama, 64)
    weights = load(tmp_path, "d", llama)
    spot_check.check(tmp_path, weights)
    pair = weights.modules[K1]
    found_MO = pair.scaling * x_MI @ pair.a_RI.T @ pair.b_OR.T
    assert torch.allclose(found_MO, expected_MO, rtol=1e-4, atol=1e-3)


def test_qalora_beside_a_plain_linear_is_plain(llama: BaseLayout, tmp_path: Path) -> None:
    """PEFT takes no notice of `use_qalora` there."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["k_proj"], r=4, use_qalora=True)
    model = get_peft_model(tiny.build_model("llama"), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    model.save_pretrained(tmp_path)
    inspect(tmp_path, llama, 64)
    a_key = f"base_model.model.{K1}.lora_A.weight"
    stored = load_file(tmp_path / WEIGHTS_FILE)[a_key]
    assert torch.equal(load(tmp_path, "d", llama).modules[K1].a_RI, stored)


def test_groups_that_do_not_divide_are_told(llama: BaseLayout, tmp_path: Path) -> None:
    test_qalora_is_what_peft_s_layer_computes(16, llama, tmp_path)
    edit_config(tmp_path, qalora_group_size=24)
    spoil(tmp_path, lambda t: t.update({k: torch.ones(4, 2) for k in t if "lora_A" in k}))
    assert "groups of 24 do not divide 64" in told(tmp_path, llama)
