"""LoRA on experts: only the rows with an adapter take another way. What the numbers are is
`tests/oracle/test_experts.py`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor

from lorry.model.layout import layout_of
from lorry_adapters.lora.base import ModuleKind
from lorry_adapters.lora.layers import LoraModel
from lorry_adapters.lora.plan import Uses, build_plan
from lorry_adapters.lora.weights import load
from support import peft_made, tiny

CPU = torch.device("cpu")
OWNER = "model.layers.0.mlp.experts"


@pytest.fixture
def model(expert_adapter: Callable[..., Path], layout: Any) -> LoraModel:
    """Two adapters on a Mixtral's experts and routers, in slots 1 and 2."""
    found = LoraModel(
        tiny.build_model("mixtral"),
        layout("mixtral"),
        num_slots=2,
        max_rank=8,
        dtype=torch.float32,
        device=CPU,
    )
    for slot in (1, 2):
        folder = expert_adapter("mixtral", "target_parameters, router", seed=slot)
        found.place(slot, found.prepare(load(folder, f"d{slot}", layout("mixtral"))))
    return found


@torch.inference_mode()
def run(model: LoraModel, rows: list[Uses], path: str, x_TH: Tensor, *args: Tensor) -> Any:
    plan = build_plan([(1, uses) for uses in rows], dtype=torch.float32, device=CPU)
    with model.planned(plan, plan):
        return model._model.get_submodule(path)(x_TH, *args)


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x_TH = torch.randn(6, 64, generator=generator)
    index_TK = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(6)])
    return x_TH, index_TK, torch.rand(6, 2, generator=generator)


MIX: list[Uses] = [[], [(1, 1.0)], [(2, 0.5)], [(1, 0.5), (2, -1.0)], [], [(1, 1.0), (1, 1.0)]]


def test_a_token_s_answer_is_its_own(
    model: LoraModel, tokens: tuple[Tensor, Tensor, Tensor]
) -> None:
    together_TH = run(model, MIX, OWNER, *tokens)
    alone = [
        run(model, [uses], OWNER, *(part[at : at + 1] for part in tokens))
        for at, uses in enumerate(MIX)
    ]
    torch.testing.assert_close(together_TH, torch.cat(alone), rtol=1e-5, atol=1e-5)
    base_TH = run(model, [[]] * 6, OWNER, *tokens)
    changed_T = (together_TH - base_TH).abs().amax(1) > 1e-2
    assert changed_T.tolist() == [bool(uses) for uses in MIX]
    torch.testing.assert_close(together_TH[[0, 4]], base_TH[[0, 4]], rtol=1e-5, atol=1e-6)


def test_named_twice_is_twice_the_scale(
    model: LoraModel, tokens: tuple[Tensor, Tensor, Tensor]
) -> None:
    twice = run(model, MIX, OWNER, *tokens)[5]
    once = run(model, [*MIX[:5], [(1, 2.0)]], OWNER, *tokens)[5]
    torch.testing.assert_close(twice, once)


def test_a_router_chooses_for_its_own_rows_only(
    model: LoraModel, tokens: tuple[Tensor, Tensor, Tensor]
) -> None:
    path = OWNER.replace("experts", "gate")
    mixed, base = (run(model, rows, path, tokens[0]) for rows in (MIX, [[]] * 6))
    for mine, theirs in zip(mixed, base, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine[[0, 4]], theirs[[0, 4]])
    assert (mixed[0] - base[0]).abs().amax(1).gt(1e-3).tolist() == [bool(uses) for uses in MIX]
    chosen_TK = torch.softmax(mixed[0], -1).topk(2).indices
    assert torch.equal(mixed[2], chosen_TK), "the choice is of the scores that it tells"


def test_a_cleared_slot_is_the_base_to_the_last_bit(
    model: LoraModel, tokens: tuple[Tensor, Tensor, Tensor]
) -> None:
    model.clear(1)
    base_TH = run(model, [[]] * 6, OWNER, *tokens)
    assert torch.equal(run(model, [[(1, 1.0)]] * 6, OWNER, *tokens), base_TH)


_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
OTHERS: dict[str, dict[str, Any]] = {
    # Stored the other way round, gate and up interleaved, with biases.
    "GptOss": {**_LOCAL, "head_dim": 16, "layer_types": ["full_attention"] * 2},
    "GraniteMoe": _LOCAL,
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0},
    "Phimoe": _LOCAL,
    # Chooses among groups of experts, with a correction that the router only keeps.
    "DeepseekV3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_mixtures_as_peft_s_own_layer(name: str, tmp_path: Path) -> None:
    """Every parameter that the layout offers, on models built alike; the network as it is."""
    config = getattr(transformers, f"{name}Config")(**{**_SMALL, **OTHERS[name]})
    torch.manual_seed(1)
    base = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    tiny.fill(base, seed=4)
    layout = layout_of(base, name)
    paths = [p for p, o in layout.parameters.items() if o.shape.kind is not ModuleKind.OTHER]
    targets = sorted({".".join(path.split(".")[-2:]) for path in paths})
    assert {"experts.gate_up_proj", "experts.down_proj"} <= {*targets}
    ids = torch.arange(2, 22)[None]
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=[], target_parameters=targets)
    theirs = get_peft_model(copy.deepcopy(base), lora)
    peft_made.fill(theirs, 0.3, seed=5)
    theirs.save_pretrained(tmp_path)
    with torch.inference_mode():
        plain, expected = base(ids).logits[0], theirs(ids).logits[0]
    mine = LoraModel(base, layout, num_slots=1, max_rank=8, dtype=torch.float32, device=CPU)
    mine.place(1, mine.prepare(load(tmp_path, "d", layout)))
    plan = build_plan([(20, [(1, 1.0)])], dtype=torch.float32, device=CPU)
    with torch.inference_mode(), mine.planned(plan, plan):
        found = base(ids).logits[0]
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
