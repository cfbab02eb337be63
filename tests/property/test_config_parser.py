"""Configs and expressions nobody would write by hand, held against PEFT and `re`."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.config import parse_config
from lorry_adapters.lora.methods.lora_method import LoraSpec
from lorry_adapters.lora.patterns import Budget, Pattern

NAMES = [
    f"{root}.{layers}.{index}.{part}"
    for root in ("model", "model.decoder")
    for layers in ("layers", "h")
    for index in (0, 1, 11)
    for part in ("attn.q_proj", "attn.v_proj", "mlp.experts.1.up", "mlp.q_proj", "c_attn")
] + ["lm_head", "q_proj", "layers.1.q_proj"]
LAYOUT = BaseLayout(
    name="made-up",
    architecture="Any",
    num_layers=12,
    output_embedding="lm_head",
    modules={name: BaseModule(name, ModuleKind.LINEAR, 8, 8) for name in NAMES},
)

_part = st.sampled_from(
    ["q_proj", "v_proj", "up", "c_attn", "attn.q_proj", "mlp", "experts.1.up", "proj", "lm_head"]
)
_path = st.one_of(_part, st.sampled_from(NAMES))
_expression = st.one_of(
    _path,
    st.sampled_from(
        [
            r".*q_proj",
            r"^model\.layers\.0\..*",
            r"^q_proj",
            r"layers\.(0|1)\..*",
            r"attn|mlp\.q_proj",
            r"[a-z.]*\d+.*up",
            r"q.proj",
            r"(?:q|v)_proj$",
            r".*\.(?!q_)\w+",
        ]
    ),
)
_sizes = st.dictionaries(_expression, st.integers(1, 64), max_size=4)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "r": draw(st.integers(1, 64)),
        "lora_alpha": draw(st.one_of(st.integers(1, 64), st.floats(0.1, 64.0))),
        "use_rslora": draw(st.booleans()),
        "rank_pattern": draw(_sizes),
        "alpha_pattern": draw(_sizes),
        "exclude_modules": draw(
            st.one_of(st.none(), _expression, st.lists(_path, min_size=1, max_size=3))
        ),
    }
    if draw(st.booleans()):
        fields["target_modules"] = draw(_expression)
    else:
        fields["target_modules"] = draw(st.lists(_path, min_size=1, max_size=4, unique=True))
        if draw(st.booleans()):
            layers = draw(st.one_of(st.integers(0, 11), st.lists(st.sampled_from([0, 1, 2, 11]))))
            fields["layers_to_transform"] = layers
            pattern = st.sampled_from(["layers", "h", "decoder.layers", "model", "blocks"])
            fields["layers_pattern"] = draw(
                st.one_of(st.none(), pattern, st.lists(pattern, max_size=2))
            )
    return fields


def parsed(fields: dict[str, Any]) -> LoraSpec:
    return parse_config(json.dumps({"peft_type": "LORA", **fields}).encode())


@settings(max_examples=200)
@given(configs())
def test_selects_as_peft_does(fields: dict[str, Any]) -> None:
    spec = parsed(fields)
    config = LoraConfig(**fields)
    chosen = [module.name for module in spec.targets.select(LAYOUT)]
    assert chosen == [name for name in NAMES if check_target_module_exists(config, name)]


@settings(max_examples=200)
@given(configs())
def test_ranks_and_strengths_are_pefts(fields: dict[str, Any]) -> None:
    spec = parsed(fields)
    for name in NAMES:
        # The lines of LoraModel._create_and_replace and LoraLayer.update_layer.
        rank = fields["rank_pattern"].get(
            get_pattern_key(fields["rank_pattern"], name), fields["r"]
        )
        alpha = fields["alpha_pattern"].get(
            get_pattern_key(fields["alpha_pattern"], name), fields["lora_alpha"]
        )
        assert spec.rank_of(name) == rank
        assert spec.scaling_of(name) == (
            alpha / math.sqrt(rank) if fields["use_rslora"] else alpha / rank
        )


_atoms = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", r"\w", r"\.", r"\d", "^", "$", r"\b", r"\B", "", "(?i:A)"]
)


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{,2}?"])).map(
            lambda two: f"({two[0]}){two[1]}"
        ),
        st.tuples(st.sampled_from(["(?=", "(?!", "(?<=", "(?<!"]), inner).map(
            lambda two: f"{two[0]}{two[1]})"
        ),
    )


@settings(max_examples=1000)
@given(
    st.recursive(_atoms, _grown, max_leaves=7),
    st.lists(st.text(alphabet="ab.1", min_size=1, max_size=7), min_size=1, max_size=6),
)
def test_expressions_match_as_python_matches(source: str, names: list[str]) -> None:
    try:
        expected = re.compile(source)
    except re.error:
        assume(False)
    pattern = Pattern(source, where="target_modules")
    for name in names:
        assert pattern.matches(name, Budget()) == (expected.fullmatch(name) is not None), name


_json = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), _expression
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
_keys = st.sampled_from([*sorted(LoraConfig(r=1).to_dict()), "enable_lora", "whatever"])


@settings(max_examples=300)
@given(st.dictionaries(_keys, _json))
def test_any_value_of_any_key_is_served_or_refused(fields: dict[str, Any]) -> None:
    check_any_bytes(json.dumps({"peft_type": "LORA", **fields}).encode())


@settings(max_examples=300)
@given(st.binary(max_size=64))
def test_any_bytes_are_served_or_refused(data: bytes) -> None:
    check_any_bytes(data)


def check_any_bytes(data: bytes) -> None:
    try:
        spec = parse_config(data)
        spec.targets.select(LAYOUT)
        assert all(math.isfinite(spec.scaling_of(name)) for name in NAMES)
    except InvalidAdapter as error:
        assert error.problems
        assert all(problem.isascii() for problem in error.problems)
