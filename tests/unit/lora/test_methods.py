"""PEFT's other methods: what spoils their files is told, and nothing large is built from a lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BeftConfig,
    FourierFTConfig,
    FrodConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    OFTConfig,
    OSFConfig,
    PeftConfig,
    PsoftConfig,
    ShiraConfig,
    SupertuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.methods import products
from lorry_adapters.lora.weights import inspect, load
from support import tiny
from support.peft_adapters import edit_config
from support.spoilt import spoil, told

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
    "shira": lambda: ShiraConfig(target_modules=["k_proj"], r=2, random_seed=1),
    "supertuning": lambda: SupertuningConfig(target_modules=["k_proj"], sparsity=0.9),
    "supra": lambda: SupertuningConfig(target_modules=["k_proj"], sparsity=0.9, r=3),
    "beft": lambda: BeftConfig(target_modules=["k_proj"]),
    "osf": lambda: OSFConfig(target_modules=["k_proj"], effective_rank=20),
    "psoft": lambda: PsoftConfig(target_modules=["k_proj"], r=4, psoft_alpha=4),
    "frod": lambda: FrodConfig(target_modules=["k_proj"], progressbar=False),
}


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


def first(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(key for key in sorted(tensors) if part in key)


def moved(tensors: dict[str, torch.Tensor], part: str, at: Any, place: int) -> None:
    """One place names `place`."""
    tensors[first(tensors, part)][at] = place


def stored(tensors: dict[str, torch.Tensor], part: str, dtype: torch.dtype) -> None:
    key = first(tensors, part)
    tensors[key] = tensors[key].to(dtype)


def halved(tensors: dict[str, torch.Tensor], part: str) -> None:
    """Places as floats, which lie between two."""
    key = first(tensors, part)
    tensors[key] = tensors[key].float() / 2 + 0.25


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
    ("shira", lambda t: t.pop(first(t, "indices")), "has no shira_indices"),
    (
        "shira",
        lambda t: moved(t, "shira_indices", (0, 3), 32),
        "contains indices outside the weight",
    ),
    ("shira", lambda t: moved(t, "shira_indices", (1, 3), 64), "not indices from 0 to 63"),
    ("shira", lambda t: moved(t, "shira_indices", (1, 3), -1), "not indices from 0 to 63"),
    (
        "shira",
        lambda t: stored(t, "shira_indices", torch.int8),
        "is I8; adapters are served in I32",
    ),
    ("shira", lambda t: stored(t, "shira_weight", torch.int32), "is I32; adapters are served in F"),
    ("shira", lambda t: halved(t, "shira_indices"), "not indices from 0 to 63"),
    ("shira", lambda t: t.update({first(t, "weight"): torch.ones(7)}), "this base needs [2, 7]"),
    ("supertuning", lambda t: moved(t, "indices", 5, 64 * 32), "not indices from 0 to 2047"),
    ("supertuning", lambda t: t.update({first(t, "values"): torch.ones(3)}), "this base needs [3]"),
    ("supertuning", lambda t: t.pop(first(t, "indices")), "has no supertuning_indices"),
    ("supra", lambda t: t.pop(first(t, "lora_B")), "has 1 matrices of a pair, but r is 3"),
    ("supra", lambda t: t.update({first(t, "lora_A"): torch.ones(2, 64)}), "needs [3, 64]"),
    ("beft", lambda t: t.update({first(t, "beft"): torch.ones(1, 64)}), "needs [1, 32]"),
    ("osf", lambda t: t.update({first(t, "V_low"): torch.ones(12, 32)}), "needs [12, 64]"),
    ("osf", lambda t: t.pop(first(t, "S_low")), "has no osf_svd_params.S_low"),
    ("psoft", lambda t: t.update({first(t, "R.weight"): torch.ones(4, 4)}), "needs [6]"),
    ("psoft", lambda t: t.pop(first(t, "vector_a")), "lacks psoft_R.vector_a, against its config"),
    ("frod", lambda t: t.pop(first(t, "frod_V")), "needs base_model.frod_V.self_attn_k_proj"),
    ("frod", lambda t: moved(t, "frod_s_indices", (0, 1), 64), "not indices from 0 to 63"),
    ("frod", lambda t: moved(t, "frod_s_size", 0, 63), "must be [64, 64]"),
    (
        "frod",
        lambda t: t.update({"base_model.frod_s_size.self_attn_k_proj": torch.ones(3)}),
        "must be",
    ),
    (
        "frod",
        lambda t: stored(t, "frod_s_indices", torch.int16),
        "is I16; the dtype must be one of I32",
    ),
    ("frod", lambda t: t.update({"base_model.frod_V.x": torch.ones(1)}), "belongs to no linear"),
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
    assert said in told(saved, llama)


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
    ("oft", {"init_weights": "../../etc/passwd"}, "this value is not served"),
    ("oft", {"target_modules": ["nothing"]}, "matches no module"),
    ("oft", {"target_modules": ["embed_tokens"]}, "linear modules only"),
    ("fourierft", {"n_frequency": 10**9}, "no tensor in the file is that large"),
    ("fourierft", {"next_years_key": 3}, "unknown key 'next_years_key'"),
    ("supertuning", {"save_precomputed_indices": False}, "save it again with true"),
    ("supertuning", {"r": 4}, "has 0 matrices of a pair, but r is 4"),
    ("psoft", {"psoft_alpha": 0}, "psoft_alpha must be above 0"),
    ("psoft", {"psoft_orth": False}, "needs [4, 4]"),
    ("psoft", {"psoft_svd": "quick"}, "psoft_svd is 'quick': must be one of full, lowrank"),
    ("psoft", {"num_cayley_neumann_terms": 10**6}, "must be a whole number up to 64"),
    ("psoft", {"psoft_mag_b": False}, "has psoft_R.vector_b, against its config"),
    ("frod", {"save_projection": False}, "save it again with save_projection=True"),
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


@pytest.mark.parametrize("saved", ["fourierft"], indirect=True)
def test_a_side_of_an_empty_tensor_makes_no_number_believed(saved: Path, llama: BaseLayout) -> None:
    spoil(saved, lambda t: t.update({"x": torch.ones(10**9, 0)}))
    edit_config(saved, n_frequency=10**9)
    assert "no tensor in the file is that large" in told(saved, llama)


@pytest.mark.parametrize("saved", ["lokr"], indirect=True)
def test_a_factor_of_two_thin_matrices_is_bounded(
    saved: Path, llama: BaseLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def thin(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "q_proj" in key]:
            del tensors[key]
        for layer in range(llama.num_layers):
            start = Q0.replace("layers.0", f"layers.{layer}")
            tensors[f"{start}.lokr_w1_a"] = torch.ones(64, 1)
            tensors[f"{start}.lokr_w1_b"] = torch.ones(1, 64)
            tensors[f"{start}.lokr_w2"] = torch.ones(1, 1)

    spoil(saved, thin)
    inspect(saved, llama, 8)
    monkeypatch.setattr(products, "MAX_DENSE", llama.num_layers * 64 * 64 * 4 - 1)
    assert "LOKR's factors would take" in told(saved, llama)


@pytest.mark.parametrize("saved", ["loha"], indirect=True)
def test_a_product_s_rank_is_the_square(saved: Path, llama: BaseLayout) -> None:
    assert inspect(saved, llama, 9).rank == 9
    assert "rank 9 is over this server's limit of 8" in told(saved, llama, max_rank=8)


@pytest.mark.parametrize("saved", ["shira", "supertuning", "frod"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_places_are_whole_numbers_of_any_kind(
    saved: Path, llama: BaseLayout, dtype: torch.dtype
) -> None:
    """PEFT on Windows stores them as floats."""
    spoil(saved, lambda t: stored(t, "indices", dtype))
    inspect(saved, llama, 64)
    assert load(saved, "d", llama).effects


@pytest.mark.parametrize("saved", ["shira"], indirect=True)
def test_places_are_looked_at_again_when_they_are_read(saved: Path, llama: BaseLayout) -> None:
    inspect(saved, llama, 64)
    spoil(saved, lambda t: moved(t, "shira_indices", (0, 3), 1 << 30))
    with pytest.raises(InvalidAdapter, match="not indices"):
        load(saved, "d", llama)


@pytest.mark.parametrize("saved", ["psoft"], indirect=True)
def test_singular_vectors_of_a_rounded_base_are_others(saved: Path, llama: BaseLayout) -> None:
    assert "those of a quantized base differ" in told(saved, replace(llama, exact=False))
