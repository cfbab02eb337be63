"""`adapter_config.json`: what is served means what PEFT means, the rest is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout, ModuleKind
from lorry_adapters.lora.config import parse_config
from lorry_adapters.lora.methods.lora_method import LoraSpec
from support import tiny

PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
}


def parsed(**fields: Any) -> LoraSpec:
    return parse_config(json.dumps({**PLAIN, **fields}).encode())


def problems_of(data: bytes) -> tuple[str, ...]:
    with pytest.raises(InvalidAdapter) as caught:
        parse_config(data)
    return caught.value.problems


def problems(**fields: Any) -> tuple[str, ...]:
    return problems_of(json.dumps({**PLAIN, **fields}).encode())


LLAMA: list[dict[str, Any]] = [
    {"target_modules": ["q_proj"]},
    {"target_modules": ["self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head"]},
    {"target_modules": "all-linear"},
    {"target_modules": "ALL-Linear", "exclude_modules": ["down_proj"]},
    {"target_modules": r".*layers\.1.*(q|v)_proj"},
    {"target_modules": r".*_proj", "exclude_modules": r".*mlp.*"},
    {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1},
    {"target_modules": ["q_proj", "model.layers.0.mlp.up_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
    {
        "target_modules": ["q_proj"],
        "layers_to_transform": [0, 7],
        "layers_pattern": ["h", "layers"],
    },
    {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"o_proj": 3, "q_proj": 5}},
    {"target_modules": ["q_proj"], "rank_pattern": {r".*\.1\..*": 3, "q_proj": 5}},
    {"target_modules": ["q_proj"], "rank_pattern": {"^q_proj": 3, r"^model\.layers\.0": 4}},
    {"target_modules": "all-linear", "alpha_pattern": {"mlp.up_proj": 2, "attn.q.proj": 9}},
    {"target_modules": "all-linear", "rank_pattern": {"up_proj|k_proj": 2}, "use_rslora": True},
    {"target_modules": ["v_proj"], "lora_alpha": 22.627416997969522, "use_rslora": True},
    {"target_modules": [f"model.layers.{i}.self_attn.{p}_proj" for i in range(8) for p in "qkvo"]},
]
GPT2: list[dict[str, Any]] = [
    {"target_modules": ["c_attn"], "fan_in_fan_out": True},
    {"target_modules": ["c_proj"], "fan_in_fan_out": True, "rank_pattern": {"mlp.c_proj": 3}},
    {"target_modules": "all-linear", "fan_in_fan_out": True},
    {"target_modules": ["c_fc"], "layers_to_transform": [1], "layers_pattern": "h"},
    {"target_modules": ["attn.c_attn"], "layers_to_transform": [0]},
]
NEOX: list[dict[str, Any]] = [
    {"target_modules": "all-linear"},
    {"target_modules": ["query_key_value", "dense"], "alpha_pattern": {"dense": 1}},
]
CASES = [
    pytest.param(family, {"r": 8, "lora_alpha": 16, **fields}, id=f"{family}-{index}")
    for family, cases in (("llama", LLAMA), ("gpt2", GPT2), ("gpt_neox", NEOX))
    for index, fields in enumerate(cases)
]


@pytest.mark.parametrize(("family", "fields"), CASES)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_wraps_what_peft_wraps(
    family: str,
    fields: dict[str, Any],
    layout: Callable[[str], BaseLayout],
    tmp_path: Path,
) -> None:
    config = tiny.family(family).config()
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **fields))
    expected = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert expected
    model.peft_config["default"].save_pretrained(tmp_path)
    as_written = json.dumps({"peft_type": "LORA", **fields}).encode()
    as_saved = (tmp_path / "adapter_config.json").read_bytes()
    for data in (as_written, as_saved):
        spec = parse_config(data)
        found = {
            module.name: (spec.rank_of(module.name), spec.scaling_of(module.name))
            for module in spec.targets.select(layout(family))
        }
        assert found == expected


def test_embeddings_are_selected_like_linears(
    layout: Callable[[str], BaseLayout],
) -> None:
    spec = parsed(target_modules=["embed_tokens", "q_proj"])
    kinds = {module.kind for module in spec.targets.select(layout("llama"))}
    assert kinds == {ModuleKind.EMBEDDING, ModuleKind.LINEAR}


def test_everything_that_peft_saves_by_default_is_understood(tmp_path: Path) -> None:
    LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]).save_pretrained(tmp_path)
    spec = parse_config((tmp_path / "adapter_config.json").read_bytes())
    assert (spec.r, spec.lora_alpha, spec.targets.target_modules) == (8, 8.0, ("q_proj",))


@pytest.mark.parametrize(
    "fields",
    [
        {"task_type": None},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        # A CorDA or LoRA-GA adapter that was converted to a plain one keeps its config.
        {"init_lora_weights": True, "corda_config": {"cache_file": None}},
        {"bias": "none", "modules_to_save": [], "use_dora": False, "lora_bias": None},
        {"lora_dropout": 0.1, "inference_mode": True, "revision": "main", "peft_version": "0.99"},
        {"auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True}},
        {"enable_lora": None, "merge_weights": False, "next_years_key": [], "another": {}},
        {"megatron_core": "megatron.core", "megatron_config": None, "qalora_group_size": 16},
        {"runtime_config": {"ephemeral_gpu_offload": True}},
        {"layers_to_transform": [], "layers_pattern": []},
    ],
)
def test_what_changes_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert parsed(**fields) == parsed()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": 1}, "use_dora is 1"),
        ({"use_dora": True, "lora_bias": True}, "PEFT does not make a LoRA with both"),
        ({"use_dora": True, "alora_invocation_tokens": [1]}, "are not served together"),
        ({"bias": "some"}, "bias is 'some': must be one of none, all, lora_only"),
        ({"modules_to_save": "lm_head"}, "must be a list of module names"),
        ({"trainable_token_indices": [-1]}, "must be a list of token ids"),
        ({"trainable_token_indices": {"embed_tokens": "x"}}, "must be a list of token ids"),
        ({"alora_invocation_tokens": [True]}, "must be a list of token ids"),
        ({"layer_replication": [[0, 2]]}, "layer replication"),
        ({"target_parameters": "experts.up"}, "must be a list of names of parameters"),
        ({"init_lora_weights": "pissa"}, "PiSSA"),
        ({"init_lora_weights": "pissa_niter_16"}, "PiSSA"),
        ({"init_lora_weights": "OLoRA"}, "OLoRA"),
        ({"init_lora_weights": "corda", "corda_config": {}}, "CorDA"),
        ({"init_lora_weights": "loftq"}, "LoftQ"),
        ({"init_lora_weights": "lora_ga"}, "LoRA-GA"),
        ({"init_lora_weights": "next_years"}, "'next_years'"),
        ({"init_lora_weights": 7}, "init_lora_weights 7"),
        ({"loftq_config": {"loftq_bits": 4}}, "LoftQ"),
        ({"megatron_config": {"x": 1}}, "Megatron"),
        ({"use_qalora": True, "qalora_group_size": 1}, "groups of one input"),
        ({"arrow_config": {"top_k": 3}}, "Arrow"),
        ({"peft_type": "LILY"}, "the mean over all tokens"),
        ({"peft_type": "POLY"}, "by the task of a request"),
        ({"peft_type": "SHADOW"}, "a second model"),
        ({"peft_type": "ADAMSS"}, "a clustering of the base's weights"),
        ({"peft_type": "ADAPTION_PROMPT"}, "how layers attend"),
        ({"peft_type": "XLORA"}, "'XLORA'"),
        ({"peft_type": None}, "peft_type is missing"),
        ({"task_type": "TOKEN_CLS"}, "'TOKEN_CLS'"),
        ({"enable_lora": [True, False, True]}, "unknown key 'enable_lora'"),
        ({"next_years_key": 0.5}, "unknown key 'next_years_key' with the value 0.5"),
        ({"r": 0}, "r is 0"),
        ({"r": -1}, "r is -1"),
        ({"r": 8.0}, "r is 8.0"),
        ({"r": True}, "r is True"),
        ({"r": "8"}, "r is '8'"),
        ({"r": None}, "r is null"),
        ({"r": 10**4000}, "r is a huge number"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e+300"),
        ({"lora_alpha": 10**400}, "lora_alpha is a huge number"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"target_modules": None}, "target_modules names no module"),
        ({"target_modules": []}, "target_modules names no module"),
        ({"target_modules": 5}, "target_modules is 5"),
        ({"target_modules": ["q_proj", 5]}, "target_modules is ['q_proj', 5]"),
        ({"target_modules": "q_proj)"}, "not a usable regular expression"),
        ({"target_modules": r"(q)?(?(1)a|b)"}, "conditional"),
        ({"target_modules": "all-linear", "layers_to_transform": [1]}, "layers_to_transform"),
        ({"exclude_modules": "("}, "exclude_modules: '('"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform is ['1']"),
        ({"layers_to_transform": True}, "layers_to_transform is True"),
        ({"layers_pattern": "layers"}, "layers_to_transform is not"),
        ({"layers_to_transform": 1, "layers_pattern": "(a+)+"}, "layers_pattern is '(a+)+'"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is {'q_proj': 0}: 'q_proj' must be"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern: "),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj']"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern"),
        ({"rank_pattern": {f"(a|b){i}": 1 for i in range(9000)}}, "regular expressions"),
        (
            {
                "target_modules": [f"model.layers.{i}.mlp.up_proj" for i in range(20)],
                "layers_to_transform": [1],
            },
            "leave one of the two out",
        ),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "\ud800"}, "base_model_name_or_path"),
    ],
)
def test_what_means_something_else_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    (problem,) = problems(**fields)
    assert said in problem
    assert problem.isascii()
    assert len(problem) < 500


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"arrow_config": {"top_k": 2}}, "name several of them with their scales in a request"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "train it on the layers that the base has"),
        ({"loftq_config": {"loftq_bits": 4}}, "train it as a LoRA"),
        ({"megatron_config": {"x": 1}}, "on transformers' own linears"),
    ],
)
def test_a_refusal_says_what_to_do(fields: dict[str, Any], said: str) -> None:
    (problem,) = problems(**fields)
    assert "is not served yet: " in problem and problem.endswith(said)


def test_loftq_is_not_sent_to_a_converter_that_refuses_it() -> None:
    (problem,) = problems(init_lora_weights="loftq")
    assert problem.endswith("is not served: train it as a LoRA")


def test_every_problem_is_told() -> None:
    found = problems(arrow_config={"top_k": 2}, bias="some", r=0, target_modules="(", whatever=1)
    assert len(found) == 5


def test_a_long_list_of_problems_ends() -> None:
    found = problems(**{f"key{i}": 1 for i in range(1000)})
    assert len(found) == 51
    assert found[-1] == "and 950 more problems"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "JSON"),
        (b"not json", "JSON"),
        (b"[]", "not a JSON object"),
        (b'"LORA"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"r": 8, "r": 16}', "'r' twice"),
        (b'{"rank_pattern": {"a": 1, "a": 2}}', "'a' twice"),
        (b'{"lora_alpha": NaN}', "NaN"),
        (b'{"lora_alpha": -Infinity}', "Infinity"),
        (b'{"r": ' + b"9" * 5000 + b"}", "JSON"),
        ("{}".encode("utf-16"), "is UTF-16 text"),
        ("{}".encode("utf-16-le"), "is UTF-16 text"),
        ("{}".encode("utf-16-be"), "is UTF-16 text"),
        ("{}".encode("utf-32"), "is UTF-32 text"),
        (b"\xef\xbb\xbf", "JSON"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "JSON"),
        (b"\x80\x04\x95", "UTF-8"),
        (b" " * (1 << 20) + b"{}", "not a config"),
    ],
)
def test_hostile_bytes(data: bytes, said: str) -> None:
    (problem,) = problems_of(data)
    assert said in problem
    assert len(problem) < 300


def test_a_byte_order_mark_of_windows_says_nothing() -> None:
    assert parse_config(b"\xef\xbb\xbf" + json.dumps(PLAIN).encode()) == parsed()


def test_a_deep_value_of_an_unknown_key_can_still_be_told() -> None:
    data = json.dumps(PLAIN)[:-1].encode() + b', "deep": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}"
    (problem,) = problems_of(data)
    assert "'deep'" in problem


def test_a_number_that_overflows_is_refused() -> None:
    data = json.dumps(PLAIN).replace('"lora_alpha": 16', '"lora_alpha": 1e999').encode()
    assert "lora_alpha is inf" in problems_of(data)[0]


@pytest.mark.parametrize("source", [r"((\w|\.)+)+!", "(.*)*(.*)*(.*)*(.*)*(.*)*!"])
def test_an_expression_that_would_hang_python_is_matched(
    source: str, layout: Callable[[str], BaseLayout]
) -> None:
    assert parsed(target_modules=source).targets.select(layout("llama")) == ()
    assert parsed(rank_pattern={source: 4}).rank_of("model.layers.0.self_attn.q_proj" * 4) == 8


def test_an_expression_that_takes_too_long_is_refused(
    layout: Callable[[str], BaseLayout],
) -> None:
    spec = parsed(target_modules="(.|..|...|....)+(?<=!)$")
    with pytest.raises(InvalidAdapter, match="take too long"):
        spec.targets.select(layout("llama"))
