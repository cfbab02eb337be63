"""How long a sequence may be, by config, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from lorry.errors import ModelError
from lorry.model.length import UNSTATED, max_model_len
from support import decoders
from support.decoders import Decoder
from support.executor_driver import Ask, ExecutorDriver
from support.families import config_of
from support.prompts import random_prompt


def longrope(**more: Any) -> PretrainedConfig:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 100,
        **more,
    }
    return config_of("LlamaConfig", rope_parameters=rope)()


def length(config: PretrainedConfig, asked: int | None = None) -> tuple[int, list[str]]:
    said: list[str] = []
    return max_model_len(config, "the/model", asked, said.append), said


def test_what_the_config_states() -> None:
    assert length(config_of("LlamaConfig")()) == (512, [])
    assert length(config_of("LlamaConfig")(), 100) == (100, [])
    with pytest.raises(ModelError, match="513: the/model was made for 512 tokens at most"):
        length(config_of("LlamaConfig")(), 513)


@pytest.mark.parametrize("name", ["n_positions", "max_seq_len", "seq_length", "n_ctx"])
def test_under_whatever_name(name: str) -> None:
    """BLOOM's own checkpoints have `seq_length`."""
    config = PretrainedConfig(**{name: 300})
    assert length(config) == (300, [])
    with pytest.raises(ModelError, match="300 tokens at most"):
        length(config, 301)


def test_where_it_states_none_there_is_one_and_it_is_said() -> None:
    made, said = length(PretrainedConfig())
    assert made == UNSTATED == 2048
    assert said == [
        "the config of the/model states no length; 2048 tokens are served "
        "(--max-model-len for more)"
    ]
    assert length(PretrainedConfig(), 5000) == (5000, [])
    assert length(PretrainedConfig(max_position_embeddings=-1))[0] == UNSTATED


def test_longrope_ends_where_its_frequencies_change() -> None:
    made, said = length(longrope())
    assert made == 100
    assert said == [
        "the/model is served up to 100 of 512 tokens: beyond 100 tokens its rotary frequencies "
        "are others for the whole sequence (LongRoPE), which is not served"
    ]
    assert length(longrope(), 60) == (60, [])
    with pytest.raises(ModelError, match=r"101: .*LongRoPE.*; give 100 or less"):
        length(longrope(), 101)


def test_where_they_do_not_change_it_does_not_end() -> None:
    assert length(longrope(long_factor=[1.0] * 8)) == (512, [])
    assert length(longrope(original_max_position_embeddings=512)) == (512, [])
    # PhiMoE scales attention by another number.
    scaled = longrope(long_factor=[1.0] * 8, short_mscale=1.0, long_mscale=1.2)
    assert length(scaled)[0] == 100


def test_layers_of_two_kinds() -> None:
    rope = {
        "full_attention": longrope().rope_parameters,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = config_of("Gemma3TextConfig", head_dim=16, rope_parameters=rope)()
    assert length(config)[0] == 100


@pytest.mark.parametrize("model_type", ["phi3", "phimoe", "llama", "cohere2"])
def test_to_the_last_token_of_it_longrope_is_as_transformers_has_it(
    model_type: str, tmp_path: Path
) -> None:
    decoder = decoders.with_rope(Decoder(model_type), "longrope")
    assert decoder is not None
    decoders.save(decoder, tmp_path)
    ours = ExecutorDriver(tmp_path)
    longest = ours.loaded.max_model_len
    assert longest == decoders.ROPE_LIMIT
    ids = random_prompt(longest, 1)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()

    def table(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = theirs(torch.tensor([ids]), use_cache=False).logits
        return logits[0].log_softmax(-1)

    whole = table(ids)
    wanted = [float(whole[i, token]) for i, token in enumerate(ids[1:])]
    for chunk in (None, 7, 1):
        assert ours.score([Ask([], ids)], chunk=chunk)[0] == pytest.approx(wanted, abs=1e-4)
    # One token more, and the first ones would be others: what is not served.
    assert (table([*ids, 7])[: longest - 1] - whole[: longest - 1]).abs().max() > 0.01
