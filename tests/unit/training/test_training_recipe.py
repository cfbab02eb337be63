"""Defaults by data and base, presets, and settings that make no sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import SettingsError
from lorry.training.training_recipe import Preset, TrainingMethod, TrainingRecipe


def test_the_fields_recipe_for_a_real_base() -> None:
    recipe = TrainingRecipe.chosen(2000, 4096)
    assert (recipe.rank, recipe.alpha, recipe.learning_rate) == (16, 32, 2e-4)
    assert recipe.epochs == 1


def test_a_small_base_learns_faster_and_little_data_longer() -> None:
    recipe = TrainingRecipe.chosen(100, 576)
    assert recipe.learning_rate == pytest.approx(5.29e-4, rel=1e-2)
    assert recipe.epochs == 10


def test_what_is_given_wins_over_the_preset() -> None:
    recipe = TrainingRecipe.chosen(
        100, 576, Preset.COMPLEX, rank=4, method=TrainingMethod.RSLORA, epochs=1.0
    )
    assert (recipe.rank, recipe.alpha, recipe.epochs) == (4, 4, 1.0)
    assert TrainingRecipe.chosen(100, 576, Preset.COMPLEX).rank == 64
    assert TrainingRecipe.chosen(10**5, 4096, Preset.LARGE_DATA).batch == 32


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rank": 0}, "--rank must be at least 1"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a number above 0"),
        ({"dropout": 1.0}, "--dropout must be"),
        ({"batch": 8, "accumulation": 3}, "--batch must be a multiple of --accumulation"),
        ({"quantize": "q4"}, "--quantize must be none, int8 or nf4"),
        ({"max_length": 0}, "--max-length must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_name_the_flag(given, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        TrainingRecipe.chosen(100, 576, **given)


def test_a_changed_setting_is_named_with_both_values() -> None:
    before = TrainingRecipe(rank=8).as_json()
    assert TrainingRecipe(rank=8).differences(before) == []
    assert TrainingRecipe(rank=16).differences(before) == ["rank 16, was 8"]


@given(examples=st.integers(0, 10**7), hidden=st.integers(1, 20000), preset=st.sampled_from(Preset))
def test_every_default_is_a_recipe(examples: int, hidden: int, preset: Preset) -> None:
    recipe = TrainingRecipe.chosen(examples, hidden, preset)
    assert recipe.batch <= max(1, examples)
    assert 0 < recipe.learning_rate < 0.2
