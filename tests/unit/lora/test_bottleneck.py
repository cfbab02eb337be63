"""AdapterHub's bottlenecks: what their config means, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.bottleneck import Bottleneck, Reads, Remembered, Stream
from lorry_adapters.lora.effects import EffectTarget
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE, inspect, load
from support import families
from support.spoilt import told

H, R = families.HIDDEN, 4
PFEIFFER: dict[str, Any] = {
    "mh_adapter": False,
    "output_adapter": True,
    "reduction_factor": 16,
    "non_linearity": "relu",
    "original_ln_before": True,
    "original_ln_after": True,
    "residual_before_ln": True,
    "dropout": 0.1,
    "init_weights": "bert",
    "phm_layer": False,
    "phm_dim": 4,
}


def tensors(*places: tuple[int, str], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "adapter_down.0.weight": (R, H),
        "adapter_down.0.bias": (R,),
        "adapter_up.weight": (H, R),
        "adapter_up.bias": (H,),
    }
    return {
        f"model.layers.{layer}.{place}.adapters.mine.{key}": torch.randn(shape, generator=generator)
        for layer, place in places
        for key, shape in shapes.items()
    } | more


BOTH = ((0, "output_adapters"), (1, "output_adapters"))


def write(
    folder: Path, held: dict[str, torch.Tensor], around: dict[str, Any] | None = None, **own: Any
) -> Path:
    config = {
        "config": {**PFEIFFER, **own},
        "hidden_size": H,
        "model_class": "LlamaForCausalLM",
        "model_name": "tiny",
        "model_type": "llama",
        "name": "mine",
        "version": "adapters.1.3.0",
        **(around or {}),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_file(held, folder / WEIGHTS_FILE)
    return folder


def test_facts(tmp_path: Path, llama: BaseLayout) -> None:
    facts = inspect(write(tmp_path, tensors(*BOTH)), llama, 2)
    assert (facts.peft_type, facts.rank, facts.task_type) == ("BOTTLENECK", 0, "CAUSAL_LM")
    assert (facts.target_modules, facts.base_model) == (("down_proj",), "tiny")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"ln_before": True}, "ln_before is True"),
        ({"ln_after": True}, "ln_after is True"),
        ({"inv_adapter": "nice"}, "an invertible adapter is not served yet"),
        ({"cross_adapter": True}, "cross_adapter is True"),
        ({"use_gating": True}, "gating is not served yet"),
        ({"phm_layer": True}, "Compacter"),
        ({"scaling": "mean"}, "scaling is 'mean'"),
        ({"non_linearity": "glu"}, "non_linearity is 'glu'"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln is 'post_add'"),
        ({"residual_before_ln": False}, "would be added twice"),
        ({"original_ln_after": False}, "would be lost"),
        ({"original_ln_before": False, "original_ln_after": False}, "would be lost"),
        ({"reduction_factor": {"0": 16}}, "neither a number for layer 1 nor a default"),
        ({"reduction_factor": 8}, "this base needs [8, 64]"),
        ({"reduction_factor": None}, "reduction_factor is missing"),
        ({"mh_adapter": True}, "the config asks for attention_adapters in layer 0"),
        ({"leave_out": [1]}, "the file contains output_adapters in layer 1"),
        ({"output_adapter": False}, "both false"),
        ({"architecture": "union"}, "of the architecture 'union' are not served"),
        ({"wings": 2}, "unknown key 'wings'"),
    ],
)
def test_what_changes_the_answer_is_served_or_named(
    own: dict[str, Any], said: str, tmp_path: Path, llama: BaseLayout
) -> None:
    assert said in told(write(tmp_path, tensors(*BOTH), **own), llama)


@pytest.mark.parametrize(
    ("around", "said"),
    [
        ({"model_class": "LlamaForSequenceClassification"}, "its head is not served"),
        ({"config": None}, "config is None: it must be an object"),
        ({"prediction_head": {"layers": 2}}, "unknown key 'prediction_head'"),
    ],
)
def test_what_stands_around_the_config(
    around: dict[str, Any], said: str, tmp_path: Path, llama: BaseLayout
) -> None:
    assert said in told(write(tmp_path, tensors(*BOTH), around), llama)


def test_every_key_of_the_file_counts(tmp_path: Path, llama: BaseLayout) -> None:
    start = "model.layers.0.output_adapters.adapters"
    held = tensors(
        *BOTH,
        (7, "output_adapters"),
        **{
            f"{start}.mine.gate.weight": torch.ones(1, H),
            f"{start}.other.scaling": torch.ones(1),
        },
    )
    del held[f"{start}.mine.adapter_up.bias"]
    found = told(write(tmp_path, held), llama)
    assert "gate.weight': unexpected key" in found
    assert "more than one adapter: mine, other" in found
    assert "without adapter_up.bias" in found
    assert "the config's scaling is 1.0" in found
    assert "the file has layers 7; the base" in found


def test_one_that_does_nothing(tmp_path: Path, llama: BaseLayout) -> None:
    held = {k: v * ("up" not in k) for k, v in tensors(*BOTH).items()}
    assert "changes nothing: every adapter_up is zero" in told(write(tmp_path, held), llama)


def test_other_bases(tmp_path: Path, layout: Callable[[str], BaseLayout]) -> None:
    found = told(write(tmp_path, tensors(*BOTH)), layout("qwen2"))
    assert "are served on GPT2LMHeadModel, LlamaForCausalLM, MistralForCausalLM" in found


def test_gelu_meant_another_one_before_versions(tmp_path: Path, llama: BaseLayout) -> None:
    for version, name in ((None, "gelu_new"), ("adapters.1.0.0", "gelu")):
        around = {"version": version}
        write(tmp_path, tensors(*BOTH), around, non_linearity="gelu")
        effects = load(tmp_path, "sha256:0", llama).effects
        (one,) = effects["model.layers.0.mlp.down_proj"]
        assert isinstance(one, Bottleneck) and one.activation == name


@pytest.mark.parametrize("reads", list(Reads))
def test_the_delta_is_the_published_formula(reads: Reads) -> None:
    torch.manual_seed(0)
    down, up = nn.Linear(H, R), nn.Linear(R, H)
    stream = None if reads is Reads.ANSWER else Stream()
    effect = Bottleneck(
        down.weight.detach(),
        down.bias.detach(),
        up.weight.detach(),
        up.bias.detach(),
        torch.tensor([3.0]),
        "tanh",
        reads,
        stream,
    )
    base = EffectTarget(nn.Linear(H, H), lambda: torch.eye(H), torch.float32, torch.device("cpu"))
    delta = effect.bind(base)
    x, r, y, scale = torch.randn(5, H), torch.randn(5, H), torch.randn(5, H), torch.rand(5, 1)
    if stream is not None:
        nothing = Remembered(stream).bind(base)(r, y, scale)
        assert not nothing.any()
    z = {Reads.ANSWER: y, Reads.SUM: y + r, Reads.RESIDUAL: r}[reads]
    expected = scale * 3 * up(torch.tanh(down(z)))
    assert F.l1_loss(delta(x, y, scale), expected) < 1e-5


def test_what_is_saved_below_the_head_names_no_body(tmp_path: Path, llama: BaseLayout) -> None:
    held = {key.removeprefix("model."): value for key, value in tensors(*BOTH).items()}
    write(tmp_path, held, {"model_class": "LlamaModel"})
    assert set(load(tmp_path, "sha256:0", llama).effects) == {
        f"model.layers.{layer}.{module}"
        for layer in (0, 1)
        for module in ("mlp.down_proj", "post_attention_layernorm")
    }
