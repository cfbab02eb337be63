"""Numbers that are finite in the file and are not where they are used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorry_adapters.lora.extremes import LARGEST
from lorry_adapters.lora.weights import CONFIG_FILE, inspect
from support.adapter_files import layout, save_adapter, save_prompt
from support.spoilt import Edit, Tensors, spoil, told

PATH = "base_model.model.model.layers.0."
A, B = (f"{PATH}self_attn.q_proj.lora_{half}.weight" for half in "AB")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", 1)


def configure(folder: Path, **changes: object) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def filled(key: str, value: float, dtype: torch.dtype = torch.float32) -> Edit:
    return lambda tensors: tensors.update({key: torch.full_like(tensors[key], value, dtype=dtype)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (filled(A, 1e38), "q_proj.lora_A.weight' contains a number of magnitude 1e+38"),
        (filled(B, -1e38), "q_proj.lora_B.weight' contains a number of magnitude 1e+38"),
        (filled(A, 3e38, torch.bfloat16), "contains a number of magnitude 3.004e+38"),
        (filled(B, 65505.0), "contains a number of magnitude 6.55"),
        (filled(B, 1e300, torch.float64), "NaN or infinite"),
        (filled(A, float("nan")), "NaN or infinite"),
        (filled(A, float("-inf"), torch.float16), "NaN or infinite"),
    ],
)
def test_a_number_no_trained_weight_comes_near(folder: Path, change: Edit, said: str) -> None:
    spoil(folder, change)
    assert said in told(folder, layout())


def test_one_number_among_many(folder: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[B][3, 1] = -7e4

    spoil(folder, change)
    assert "contains a number of magnitude 7e+04" in told(folder, layout())


def test_the_largest_of_half_precision_is_a_number_like_another(folder: Path) -> None:
    """A alone: what it makes with B stays small."""

    def change(tensors: Tensors) -> None:
        tensors[A][0, 0] = LARGEST
        tensors[B] *= 1e-3

    spoil(folder, change)
    assert inspect(folder, layout(), 64).rank == 2


def both(a: float, b: float) -> Edit:
    def change(tensors: Tensors) -> None:
        filled(A, a)(tensors)
        filled(B, b)(tensors)

    return change


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (both(6e4, 6e4), {}),
        (both(300.0, 300.0), {}),
        (both(1.0, 1.0), {"lora_alpha": 1e6}),
        # Only B times alpha / r does not fit in half precision.
        (both(1e-6, 1e3), {"lora_alpha": 200}),
    ],
)
def test_what_is_too_strong_together(folder: Path, change: Edit, config: dict[str, object]) -> None:
    spoil(folder, change)
    configure(folder, **config)
    said = told(folder, layout())
    assert "q_proj': alpha and the matrices together are too strong" in said
    assert "at most 65504" in said


@pytest.mark.parametrize("config", [{}, {"use_dora": True}])
def test_dora_is_no_way_around(folder: Path, config: dict[str, object]) -> None:
    def change(tensors: Tensors) -> None:
        both(6e4, 6e4)(tensors)
        if config:
            for module, width in (("self_attn.q_proj", 6), ("mlp.down_proj", 6)):
                tensors[f"{PATH}{module}.lora_magnitude_vector"] = torch.ones(width)

    spoil(folder, change)
    configure(folder, **config)
    assert "too strong" in told(folder, layout())


def test_a_prompt_of_huge_numbers(tmp_path: Path) -> None:
    folder = save_prompt(tmp_path / "prompt", 1)
    spoil(folder, lambda tensors: tensors.update(prompt_embeddings=torch.full((3, 6), 1e30)))
    assert "'prompt_embeddings' contains a number of magnitude 1e+30" in told(folder, layout())


def test_a_loud_adapter_is_served(folder: Path) -> None:
    """A hundred times what training leaves, at eight times the strength."""
    spoil(folder, both(3.0, 3.0))
    configure(folder, lora_alpha=16)
    inspect(folder, layout(), 64)


def test_places_are_no_weights_however_large(tmp_path: Path) -> None:
    """Stored as floats, as on Windows."""
    folder = save_adapter(tmp_path / "sparse", 1, hidden=300)
    name = f"{PATH}self_attn.q_proj.supertuning_"

    def change(tensors: Tensors) -> None:
        tensors.clear()
        tensors[f"{name}values"] = torch.ones(3)
        tensors[f"{name}indices"] = torch.tensor([1.0, 80_000.0, 89_999.0])

    spoil(folder, change)
    config = {"peft_type": "SUPERTUNING", "target_modules": ["q_proj"]}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    assert inspect(folder, layout(hidden=300), 64).peft_type == "SUPERTUNING"
    spoil(folder, filled(f"{name}values", 1e6))
    assert "supertuning_values' contains a number of magnitude 1e+06" in told(
        folder, layout(hidden=300)
    )
