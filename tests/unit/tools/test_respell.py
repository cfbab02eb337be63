"""Names of modules in keys and in a config, changed together, or not at all and with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorry_adapters.errors import ToolError
from lorry_adapters.lora.spelling import Spelling
from lorry_adapters.tools.respell import Respelled, respelled

PREFIX = "base_model.model."
LAYER = "layers.0.self_attn.q_proj"
OLD = f"language_model.model.{LAYER}"
NEW = f"model.language_model.{LAYER}"
TEXT = f"model.{LAYER}"
OLD_TOWER, TOWER = f"vision_tower.encoder.{LAYER}", f"model.vision_tower.encoder.{LAYER}"
LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}


def run(
    *modules: str,
    to: Spelling | None = None,
    more: tuple[str, ...] = (),
    problems: list[str] | None = None,
    **config: Any,
) -> Respelled:
    keys = [f"{PREFIX}{one}.lora_{half}.weight" for one in modules for half in "AB"]
    tensors = {key: torch.ones(1) for key in [*keys, *(PREFIX + one for one in more)]}
    return respelled({**LORA, **config}, tensors, to, [] if problems is None else problems)


def modules(found: Respelled) -> set[str]:
    return {key.removeprefix(PREFIX).partition(".lora_")[0] for key in found.tensors}


def test_older_names_become_today_s_without_being_asked() -> None:
    found = run(OLD, OLD_TOWER, "multi_modal_projector.linear", "language_model.lm_head")
    assert modules(found) == {NEW, TOWER, "model.multi_modal_projector.linear", "lm_head"}
    assert found.config["target_modules"] == ["q_proj"]
    assert found.changes == (
        "8 keys: the names of a model with other parts, as transformers has them since 4.52",
    )


@pytest.mark.parametrize("names", [(NEW, TOWER), (TEXT,), (TEXT, "visual.blocks.0.qkv")])
def test_others_stay_unless_asked(names: tuple[str, ...]) -> None:
    found = run(*names)
    assert modules(found) == {*names} and found.changes == ()


@pytest.mark.parametrize(
    "names",
    [
        (OLD, OLD_TOWER),
        (NEW, TOWER, "model.multi_modal_projector.linear"),
        (TEXT, "visual.blocks.0.attn.qkv"),
        (TEXT, "model.vision_tower.q_proj", "model.audio_tower.q_proj", "model.embed_vision.proj"),
    ],
)
def test_the_text_alone(names: tuple[str, ...]) -> None:
    found = run(*names, to=Spelling.TEXT)
    assert modules(found) == {TEXT}
    assert found.config["target_modules"] == ["q_proj"]
    assert "left out, of parts that no text reaches" in found.changes[1]


@pytest.mark.parametrize("names", [(TEXT,), (OLD,)])
def test_within_a_wrapper(names: tuple[str, ...]) -> None:
    assert modules(run(*names, to=Spelling.WRAPPER)) == {NEW}
    # A plain name would find the other part's, too.
    targets = [NEW] if names == (TEXT,) else ["q_proj"]
    assert run(*names, to=Spelling.WRAPPER).config["target_modules"] == targets


@pytest.mark.parametrize(
    ("targets", "to", "expected"),
    [
        (r".*language_model.*\.q_proj", Spelling.TEXT, [TEXT]),
        ([NEW, TOWER], Spelling.TEXT, [TEXT, TOWER]),
        (["self_attn.q_proj"], Spelling.TEXT, ["self_attn.q_proj"]),
        ("all-linear", Spelling.TEXT, "all-linear"),
        ([f"language_model.{LAYER}"], Spelling.TEXT, [LAYER]),
    ],
)
def test_targets_select_what_they_did(targets: object, to: Spelling, expected: object) -> None:
    found = run(NEW, TOWER, to=to, target_modules=targets)
    assert found.config["target_modules"] == expected


def test_what_narrows_an_expression_goes_with_it() -> None:
    found = run(
        OLD,
        target_modules=r"language_model\..*q_proj",
        exclude_modules=r"vision_tower.*",
        layers_pattern=None,
    )
    assert (found.config["target_modules"], found.config["exclude_modules"]) == ([NEW], None)


def test_only_modules_with_tensors_of_the_method_s_own_are_targets() -> None:
    found = run(
        TEXT,
        to=Spelling.WRAPPER,
        more=(
            "model.embed_tokens.token_adapter.trainable_tokens_delta",
            "model.norm.weight",
            "lm_head.weight",
            "model.layers.0.mlp.experts.lora_A.weight",
            "model.layers.0.mlp.experts.base_layer.lora_A.weight",
        ),
        modules_to_save=["lm_head", "model.norm"],
        trainable_token_indices={"model.embed_tokens": [3], "embed": [4]},
        target_parameters=["mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"],
    )
    config = found.config
    assert config["target_modules"] == [NEW]
    assert config["modules_to_save"] == ["lm_head", "model.language_model.norm"]
    assert config["trainable_token_indices"] == {
        "model.language_model.embed_tokens": [3],
        "embed": [4],
    }
    assert config["target_parameters"] == [
        "mlp.experts.gate_up_proj",
        "model.language_model.layers.0.mlp.experts.down_proj",
    ]


def test_feedforward_modules_stay_part_of_the_targets() -> None:
    config = {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    found = run(TEXT, "model.layers.0.mlp.down_proj", to=Spelling.WRAPPER, **config)
    down = "model.language_model.layers.0.mlp.down_proj"
    assert found.config["feedforward_modules"] == [down]
    assert set(found.config["target_modules"]) == {NEW, down}


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_means_the_same_modules_or_is_a_problem(key: str) -> None:
    problems: list[str] = []
    pattern = {"q_proj": 4, NEW: 8}
    found = run(NEW, to=Spelling.TEXT, problems=problems, **{key: pattern})
    assert found.config[key] == {"q_proj": 4, TEXT: 8} and problems == []
    run(NEW, to=Spelling.TEXT, problems=problems, **{key: {r"^model\.language_model\..*": 4}})
    assert len(problems) == 1
    assert f"{key} is" in problems[0] and "would mean other modules" in problems[0]


@pytest.mark.parametrize(
    ("names", "to", "said"),
    [
        ((TEXT,), Spelling.TEXT, "are those of a text model already"),
        ((NEW,), Spelling.WRAPPER, "are those of a model with other parts already"),
        (("visual.blocks.0.qkv",), Spelling.TEXT, "nothing of it is of a text model"),
    ],
)
def test_what_is_asked_in_vain_is_said(names: tuple[str, ...], to: Spelling, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        run(*names, to=to)


def test_keys_of_two_times_are_told_apart_by_nobody() -> None:
    problems: list[str] = []
    run(OLD, NEW, problems=problems)
    assert "of models of before and after transformers 4.52" in problems[0]


def test_hidden_states_have_no_outermost_model() -> None:
    assert modules(run(f"language_model.{LAYER}", to=Spelling.TEXT)) == {LAYER}
