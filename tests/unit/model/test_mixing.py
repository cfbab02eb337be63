"""Layers that keep a state are found by what they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorry.errors import UnsupportedModel
from lorry.model import packed
from lorry.model.paths import first_pass
from support import families, tiny
from support.executor_driver import load_tiny
from support.families import config_of

_MAMBA: dict[str, Any] = {
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
}
STATEFUL = {
    "lfm2": (
        config_of("Lfm2Config", layer_types=["conv", "full_attention"]),
        "model.layers.0.conv (Lfm2ShortConv)",
    ),
    "minimax": (
        config_of(
            "MiniMaxConfig",
            head_dim=16,
            layer_types=["full_attention", "linear_attention"],
            num_local_experts=4,
            block_size=8,
        ),
        "model.layers.1.self_attn (MiniMaxLightningAttention)",
    ),
    "falcon_h1": (
        config_of(
            "FalconH1Config", mamba_d_ssm=64, mamba_n_heads=4, mamba_expand=1, head_dim=16, **_MAMBA
        ),
        "model.layers.0.mamba (FalconH1Mixer)",
    ),
    "bamba": (
        config_of("BambaConfig", attn_layer_indices=[1], mamba_n_heads=8, **_MAMBA),
        "model.layers.0.mamba (BambaMixer)",
    ),
    "recurrent_gemma": (
        config_of(
            "RecurrentGemmaConfig",
            lru_width=64,
            attention_window_size=8,
            num_hidden_layers=3,
            head_dim=16,
        ),
        "model.layers.0.temporal_block (RecurrentGemmaRecurrentBlock)",
    ),
}
"""A model of each kind of layer that keeps one, and what the refusal names."""


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_model_that_keeps_a_state_is_refused_by_name(
    name: str, quantization: str, tmp_path: Path
) -> None:
    config, named = STATEFUL[name]
    tiny.save(config(), tmp_path)
    with pytest.raises(UnsupportedModel) as refused:
        first_pass(load_tiny(tmp_path, quantization=quantization))
    assert f"{named} keeps a state" in str(refused.value)
    assert "padded" in str(refused.value)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_attention_alone_keeps_none(
    family: str, quantization: str, tiny_model: Callable[[str], Path]
) -> None:
    assert packed.measure(load_tiny(tiny_model(family), quantization=quantization))
