"""A copy of a model in which every length that matters is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PretrainedConfig

from lorry.model import length_limits
from lorry.model.base_loader import LoadedModel
from lorry.model.paths import first_pass
from lorry.model.trial import Trial
from support import tiny
from support.executor_driver import load_tiny
from support.families import config_of

TRIAL = Trial(lengths=(40,), piece=9)

GEMMA = config_of("Gemma3TextConfig", sliding_window=100, head_dim=16, num_hidden_layers=12)
LLAMA_4 = config_of(
    "Llama4TextConfig",
    head_dim=16,
    attention_chunk_size=64,
    intermediate_size_mlp=64,
    num_local_experts=2,
    num_hidden_layers=4,
)
LONGROPE = config_of(
    "Phi3Config",
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 128,
    },
    original_max_position_embeddings=128,
)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., LoadedModel]:
    def of(config: Callable[[], PretrainedConfig], **changed: object) -> LoadedModel:
        tiny.save(config(), tmp_path)
        made = replace(load_tiny(tmp_path), **changed)  # type: ignore[arg-type]
        first_pass(made)
        return made

    return of


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (GEMMA, "sliding_window", 100),
        (LLAMA_4, "attention_chunk_size", 64),
        (LONGROPE, "original_max_position_embeddings", 128),
    ],
)
def test_a_length_that_a_sequence_can_go_beyond(
    config: Callable[[], PretrainedConfig],
    name: str,
    value: int,
    loaded: Callable[..., LoadedModel],
) -> None:
    # A server of LongRoPE's ends there; the copy shows it to one that does not.
    model = loaded(config, max_model_len=512)
    assert length_limits.limits_of(model)[name] == value
    sequences = TRIAL.sequences(model)
    whole, short = (
        TRIAL.alone(length_limits.shortened(model, limits=cut), sequences) for cut in (False, True)
    )
    assert (torch.tensor(whole) - torch.tensor(short)).abs().max() > 0.1
    # What the server does not let a sequence reach is no limit.
    kept = replace(model, max_model_len=value)
    assert name not in length_limits.limits_of(kept)
    assert TRIAL.alone(length_limits.shortened(kept), sequences) == whole


def test_the_model_itself_stays_what_it_is(loaded: Callable[..., LoadedModel]) -> None:
    model = loaded(GEMMA)
    sequences = TRIAL.sequences(model)
    before = TRIAL.alone(model, sequences)
    copy = length_limits.shortened(model)
    TRIAL.alone(copy, sequences)
    assert TRIAL.alone(model, sequences) == before
    assert model.config.sliding_window == 100 and copy.config.sliding_window == length_limits.WINDOW
    own = {id(parameter) for parameter in model.model.parameters()}
    assert {id(parameter) for parameter in copy.model.parameters()} < own


def test_it_has_a_layer_of_every_kind(loaded: Callable[..., LoadedModel]) -> None:
    """Gemma 3: five layers with a window, one without, and so on."""
    model = loaded(GEMMA)
    assert length_limits.shortened(model).config.num_hidden_layers == 6
    assert length_limits.shortened(model, layers=False).config.num_hidden_layers == 12
