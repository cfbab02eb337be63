"""The shipped samples are whole, small, free of this or that machine, and say what they are."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

SAMPLES = Path(__file__).resolve().parents[2] / "adapters" / "samples"
DATA = SAMPLES / "recipe" / "data"
TABLE = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
NAMES = [sample["name"] for sample in TABLE["samples"]]

HIDDEN, INNER, KV, LAYERS = 576, 1536, 192, 30
"""Of SmolLM2-135M: the widths that its linear layers map between, and how many layers it has."""
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KV),
    "self_attn.v_proj": (HIDDEN, KV),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INNER),
    "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}
"""Module -> (in, out)."""


def entry(name: str) -> dict[str, Any]:
    return next(sample for sample in TABLE["samples"] if sample["name"] == name)


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((SAMPLES / name / "adapter_config.json").read_text())
    return config


def header_of(name: str) -> dict[str, Any]:
    data = (SAMPLES / name / "adapter_model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    assert len(data) == 8 + length + max(row["data_offsets"][1] for row in header.values())
    return header


def expected_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """What PEFT writes for this config over SmolLM2-135M: key -> shape."""
    targets, layers = config["target_modules"], config["layers_to_transform"]
    shapes = {}
    for layer in range(LAYERS) if layers is None else layers:
        for path, (width_in, width_out) in SHAPES.items():
            module, leaf = f"model.layers.{layer}.{path}", path.split(".")[1]
            if isinstance(targets, str):
                wanted = re.fullmatch(targets, module) is not None
            else:
                wanted = leaf in targets
            if wanted:
                rank = config["rank_pattern"].get(leaf, config["r"])
                prefix = f"base_model.model.{module}"
                shapes[f"{prefix}.lora_A.weight"] = [rank, width_in]
                shapes[f"{prefix}.lora_B.weight"] = [width_out, rank]
    return shapes


def test_at_least_four_samples_and_each_folder_is_listed() -> None:
    assert len(NAMES) >= 4
    assert len(set(NAMES)) == len(NAMES)
    folders = {path.parent.name for path in SAMPLES.glob("*/adapter_config.json")}
    assert folders == set(NAMES)
    overview = (SAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"[{name}]({name}/README.md)" in overview for name in NAMES)


def test_the_samples_differ_in_shape() -> None:
    configs = [config_of(name) for name in NAMES]
    assert len({config["r"] for config in configs}) >= 4
    places = {json.dumps([c["target_modules"], c["layers_to_transform"]]) for c in configs}
    assert len(places) == len(configs)
    assert any(config["use_rslora"] for config in configs)
    assert any(config["rank_pattern"] for config in configs)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_small_and_whole(name: str) -> None:
    files = {path.name: path.stat().st_size for path in (SAMPLES / name).iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert sum(files.values()) < 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_its_config_is_plain_lora_over_the_default_base(name: str) -> None:
    config = config_of(name)
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == TABLE["base"]
    assert config["inference_mode"] is True
    assert config["bias"] == "none"
    assert not config["use_dora"]
    assert not config["lora_bias"]
    assert not config["modules_to_save"]
    text = (SAMPLES / name / "adapter_config.json").read_text(encoding="utf-8")
    # A path would be a string with a slash or a backslash before letters; a regex target has "\.".
    assert "/" not in text
    assert not re.search(r"[A-Za-z]:\\", text)


@pytest.mark.parametrize("name", NAMES)
def test_its_tensors_are_those_its_config_asks_for(name: str) -> None:
    header = header_of(name)
    assert {key: row["shape"] for key, row in header.items()} == expected_shapes(config_of(name))
    assert {row["dtype"] for row in header.values()} <= {"BF16", "F16", "F32"}


@pytest.mark.parametrize("name", NAMES)
def test_its_weights_are_trained_and_finite(name: str) -> None:
    tensors = load_file(SAMPLES / name / "adapter_model.safetensors")
    assert all(math.isfinite(float(tensor.float().abs().sum())) for tensor in tensors.values())
    # An untrained adapter has every B at zero, and does nothing.
    assert all(bool(t.any()) for key, t in tensors.items() if ".lora_B." in key)


@pytest.mark.parametrize("name", NAMES)
def test_its_card_says_what_it_is(name: str) -> None:
    card = (SAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert TABLE["base_gguf_sha256"] in card
    assert "Apache-2.0" in card
    assert f"train.py {name}" in card
    assert all(demo in card for demo in entry(name)["demos"])
    weights = (SAMPLES / name / "adapter_model.safetensors").read_bytes()
    assert f"{len(weights):,} bytes" in card


@pytest.mark.parametrize("name", NAMES)
def test_its_card_names_the_weights_that_lie_beside_it(name: str) -> None:
    weights = (SAMPLES / name / "adapter_model.safetensors").read_bytes()
    card = (SAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(weights).hexdigest() in card


@pytest.mark.parametrize("name", NAMES)
def test_its_data_parse_and_hold_none_of_the_demos(name: str) -> None:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) >= 60
    assert all(set(row) == {"prompt", "answer"} for row in rows)
    assert all(row["prompt"].strip() and row["answer"].strip() for row in rows)
    prompts = [row["prompt"] for row in rows]
    assert len(set(prompts)) == len(prompts)
    assert not set(prompts) & set(entry(name)["demos"])


@pytest.mark.parametrize("name", NAMES)
def test_its_data_are_what_its_check_expects(name: str) -> None:
    expect = re.compile(entry(name)["expect"])
    rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]
    met = [expect.search(row["answer"]) is not None for row in rows]
    # A style may skip a sentence now and then; a format may not, and its share is then exactly 1.
    assert sum(met) >= 0.95 * len(rows)
    if name in ("json", "sql", "sentiment"):
        assert all(met)
    if name == "json":
        for row in rows:
            assert set(json.loads(row["answer"])) == {"topic", "answer", "confidence"}


@pytest.mark.parametrize("name", NAMES)
def test_its_entry_is_complete(name: str) -> None:
    sample = entry(name)
    assert set(sample) == {"name", "description", "expect", "demos", "max_new_tokens"}
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name)
    assert sample["description"] and len(sample["demos"]) >= 2
    assert 1 <= sample["max_new_tokens"] <= 128
