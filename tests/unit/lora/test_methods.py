"""PEFT's other methods: what spoils their files is told, and nothing large is built from a lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    FourierFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    OFTConfig,
    PeftConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE, inspect, load
from support import tiny

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "ia3": lambda: IA3Config(
        target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "adalora": lambda: AdaLoraConfig(target_modules=["q_proj"], init_r=6, total_step=9),
    "loha": lambda: LoHaConfig(target_modules=["q_proj"], r=3),
    "lokr": lambda: LoKrConfig(target_modules=["q_proj"], r=3),
    "vera": lambda: VeraConfig(target_modules=["q_proj"], r=5),
    "norms": lambda: LNTuningConfig(target_modules=["input_layernorm"]),
    "tokens": lambda: TrainableTokensConfig(token_indices=[5, 9]),
    "oft": lambda: OFTConfig(target_modules=["q_proj"], r=8, oft_block_size=0),
    "fourierft": lambda: FourierFTConfig(target_modules=["q_proj"], n_frequency=50),
}


@pytest.fixture
def llama(layout: Callable[[str], BaseLayout]) -> BaseLayout:
    return layout("llama")


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of an adapter of the parametrized method, its numbers drawn."""
    torch.manual_seed(0)
    config = CONFIGS[request.param]()
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(tiny.build_model("llama"), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS_FILE)


def problems(folder: Path, layout: BaseLayout, max_rank: int = 64) -> str:
    with pytest.raises(InvalidAdapter) as caught:
        inspect(folder, layout, max_rank)
    return "; ".join(caught.value.problems)


def first(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(key for key in sorted(tensors) if part in key)


@pytest.mark.parametrize("saved", CONFIGS, indirect=True)
def test_what_peft_saves_is_taken(saved: Path, llama: BaseLayout) -> None:
    facts = inspect(saved, llama, 64)
    weights = load(saved, "d", llama)
    assert facts.bytes and facts.target_modules
    assert weights.modules or weights.effects


SPOILT: list[tuple[str, Callable[[dict[str, torch.Tensor]], object], str]] = [
    ("ia3", lambda t: t.pop(first(t, "q_proj.ia3_l")), "the file lacks"),
    ("ia3", lambda t: t.update({first(t, "q_proj.ia3_l"): torch.ones(1, 64)}), "needs [64, 1]"),
    ("ia3", lambda t: t.update({first(t, "down_proj.ia3_l"): torch.ones(9)}), "this base needs"),
    ("ia3", lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(4, 64)}), "unexpected key"),
    ("adalora", lambda t: t.pop(first(t, "lora_E")), "has no lora_E"),
    ("adalora", lambda t: t.update({first(t, "lora_B"): torch.ones(64, 2)}), "needs [64, 6]"),
    ("loha", lambda t: t.pop(first(t, "hada_w2_b")), "has no hada_w2_b"),
    ("loha", lambda t: t.update({first(t, "hada_w1_a"): torch.ones(64, 4)}), "needs [64, 3]"),
    ("lokr", lambda t: t.pop(first(t, "lokr_w1")), "no usable lokr_w1"),
    ("lokr", lambda t: t.update({first(t, "lokr_w1"): torch.ones(3, 3)}), "the product of"),
    ("vera", lambda t: t.pop("base_model.vera_A"), "no vera_A and vera_B"),
    ("vera", lambda t: t.update({"base_model.vera_A": torch.ones(5, 63)}), "needs [5, 64]"),
    ("vera", lambda t: t.pop(first(t, "vera_lambda_d")), "has no vera_lambda_d"),
    ("norms", lambda t: t.update({first(t, "ln_tuning"): torch.ones(3)}), "needs [64]"),
    ("tokens", lambda t: t.update({first(t, "delta"): torch.ones(3, 64)}), "needs [2, 64]"),
    ("oft", lambda t: t.pop(first(t, "oft_R")), "missing"),
    ("oft", lambda t: t.update({"x.oft_R.weight": torch.ones(3)}), "not those of its config"),
    ("oft", lambda t: t.update({first(t, "oft_R"): torch.ones(3, 3)}), "PEFT cannot build OFT"),
    ("fourierft", lambda t: t.update({first(t, "spectrum"): torch.ones(7)}), "PEFT cannot build"),
]


@pytest.mark.parametrize(
    ("saved", "change", "said"),
    SPOILT,
    indirect=["saved"],
    ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(SPOILT)],
)
def test_what_spoils_a_file_is_told(
    saved: Path, llama: BaseLayout, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    spoil(saved, change)
    assert said in problems(saved, llama)


CHANGED: list[tuple[str, dict[str, Any], str]] = [
    ("ia3", {"feedforward_modules": "("}, "feedforward_modules: '('"),
    ("ia3", {"feedforward_modules": []}, "this base needs [64, 1]"),
    ("ia3", {"target_modules": ["v_proj"]}, "does not target"),
    ("adalora", {"init_r": 0}, "init_r is 0"),
    ("adalora", {"use_dora": True}, "DoRA of AdaLoRA"),
    ("loha", {"r": 4}, "this base needs [64, 4]"),
    ("vera", {"projection_prng_key": -1}, "projection_prng_key is -1"),
    ("tokens", {"token_indices": [5, 100_000]}, "not 100000"),
    ("tokens", {"token_indices": []}, "names no token"),
    ("oft", {"oft_block_size": 1 << 40}, "no tensor in the file is that large"),
    ("oft", {"module_dropout": float(1 << 70)}, "module_dropout is"),
    ("oft", {"init_weights": "../../etc/passwd"}, "not a value that is served"),
    ("oft", {"target_modules": ["nothing"]}, "matches no module"),
    ("oft", {"target_modules": ["embed_tokens"]}, "linear modules only"),
    ("fourierft", {"n_frequency": 10**9}, "no tensor in the file is that large"),
    ("fourierft", {"next_years_key": 3}, "unknown key 'next_years_key'"),
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
    edit(saved, **changes)
    assert said in problems(saved, llama)


@pytest.mark.parametrize("saved", ["loha"], indirect=True)
def test_a_product_s_rank_is_the_square(saved: Path, llama: BaseLayout) -> None:
    assert inspect(saved, llama, 9).rank == 9
    assert "rank 9 is over this server's limit of 8" in problems(saved, llama, max_rank=8)
