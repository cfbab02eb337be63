"""Whose names the keys of a file have, and the base as such an adapter knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorry.model.layout import layout_of
from lorry_adapters.errors import InvalidAdapter, Problem, Remedy
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.spelling import Spelling, is_beside, spelled, spellings
from lorry_adapters.lora.weights import inspect, load
from lorry_adapters.registry.startup_check import fingerprint
from support import wrapped_base
from support.peft_adapters import edit_config
from support.spoilt import spoil

PREFIX = "base_model.model."
A = ".self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def wrapped() -> BaseLayout:
    return layout_of(wrapped_base.build(), "wrapped")


@pytest.mark.parametrize(
    ("key", "spelling"),
    [
        (f"model.language_model.layers.0{A}", Spelling.WRAPPER),
        (f"language_model.layers.0{A}", Spelling.WRAPPER),
        (f"language_model.model.layers.0{A}", Spelling.OLDER),
        ("language_model.lm_head.lora_A.weight", Spelling.OLDER),
        (f"model.layers.0{A}", Spelling.TEXT),
        (f"layers.0{A}", Spelling.TEXT),
        (f"model.vision_tower.encoder.layers.0{A}", None),
        (f"vision_tower.vision_model.encoder.layers.0{A}", None),
        ("lm_head.lora_A.weight", None),
        (f"transformer.h.0{A}", None),
    ],
)
def test_whose_name_a_key_has(key: str, spelling: Spelling | None) -> None:
    found = [] if spelling is None else [spelling]
    for prefix in ("", PREFIX, PREFIX * 2, f"{PREFIX}_orig_mod."):
        assert list(spellings([prefix + key], ["layers", "norm", "embed_tokens"])) == found


def test_a_base_with_another_part_says_where_its_text_model_is(
    wrapped: BaseLayout, llama: BaseLayout
) -> None:
    assert (wrapped.text, llama.text) == ("model.language_model", "")
    tower = "model.vision_tower.encoder.layers.0.self_attn.q_proj"
    assert is_beside(wrapped, tower) and tower in wrapped.modules
    assert is_beside(wrapped, "model.multi_modal_projector")
    assert not is_beside(wrapped, "model.language_model.layers.0.self_attn.q_proj")
    assert not is_beside(wrapped, "lm_head")
    assert not is_beside(llama, "model.layers.0.self_attn.q_proj")
    # What is stored is looked at again, once, by a server that knows of this.
    assert fingerprint(wrapped) != fingerprint(replace(wrapped, text=""))


def test_a_text_model_s_names_are_shown_without_the_other_part(wrapped: BaseLayout) -> None:
    found = spelled(wrapped, [f"{PREFIX}model.layers.0{A}"])
    assert found.layout.input_embedding == "model.embed_tokens"
    assert "model.layers.0.self_attn.q_proj" in found.layout.modules
    assert not any("vision" in name for name in found.layout.modules)
    assert found.own["model.norm"] == "model.language_model.norm"
    assert found.own["lm_head"] == "lm_head"
    assert all(name == module.name for name, module in found.layout.modules.items())


def test_older_names_are_shown_with_it(wrapped: BaseLayout) -> None:
    found = spelled(wrapped, [f"{PREFIX}language_model.model.layers.0{A}"])
    assert found.layout.output_embedding == "language_model.lm_head"
    assert "vision_tower.encoder.layers.0.self_attn.q_proj" in found.layout.modules
    assert sorted(found.own.values()) == sorted(wrapped.modules)


@pytest.mark.parametrize(
    "keys",
    [
        [f"model.language_model.layers.0{A}"],
        [f"model.language_model.layers.0{A}", f"model.layers.0{A}"],
        [f"language_model.model.layers.0{A}", f"model.layers.0{A}"],
        [f"model.vision_tower.encoder.layers.0{A}"],
        [],
    ],
    ids=["its own", "its own and others", "two others", "the other part's", "none"],
)
def test_else_it_is_shown_as_it_is(keys: list[str], wrapped: BaseLayout) -> None:
    assert spelled(wrapped, keys).layout is wrapped


@pytest.mark.parametrize("root", ["model.language_model.", "language_model.model."])
def test_a_text_model_takes_an_adapter_of_a_wrapper(
    root: str, adapter: Path, llama: BaseLayout
) -> None:
    plain = load(adapter, "d", llama)
    file = adapter / "adapter_model.safetensors"
    save_file(
        {k.replace("model.layers", f"{root}layers"): t for k, t in load_file(file).items()}, file
    )
    edit_config(adapter, target_modules=r".*language_model.*\w_proj")
    assert inspect(adapter, llama, 64).warnings == ()
    found = load(adapter, "d", llama)
    assert found.modules.keys() == plain.modules.keys()
    for name, pair in found.modules.items():
        assert torch.equal(pair.b_OR, plain.modules[name].b_OR)


def test_and_says_what_to_do_with_the_other_part_s(adapter: Path, llama: BaseLayout) -> None:
    def wrap(tensors: dict[str, Any]) -> None:
        for key in list(tensors):
            tensor = tensors.pop(key)
            tensors[key.replace("model.layers", "model.language_model.layers")] = tensor
            tensors[key.replace("model.layers", "model.visual.blocks")] = tensor.clone()

    spoil(adapter, wrap)
    with pytest.raises(InvalidAdapter) as caught:
        inspect(adapter, llama, 64)
    (said,) = caught.value.problems
    assert isinstance(said, Problem)
    assert "14 modules that the base tiny-llama does not have: model.visual.blocks.0" in said
    assert said.remedy is Remedy.KEEP_TEXT


def test_experts_are_found_as_well(
    expert_adapter: Callable[..., Path], layout: Callable[[str], BaseLayout]
) -> None:
    qwen = layout("qwen3_moe")
    folder = expert_adapter("qwen3_moe", "target_parameters, router")
    plain = load(folder, "d", qwen)
    spoil(
        folder,
        lambda tensors: [
            tensors.update(
                {key.replace("model.layers", "model.language_model.layers"): tensors.pop(key)}
            )
            for key in list(tensors)
        ],
    )
    found = load(folder, "d", qwen)
    assert found.effects.keys() == plain.effects.keys() and found.effects
