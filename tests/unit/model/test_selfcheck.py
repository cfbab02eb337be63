"""The start-up check lets good models pass, and finds whatever would be served wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

from lorry.errors import ModelError, UnsupportedModel
from lorry.model import attention, executor, padded, selfcheck
from lorry.model.attention import Recorder, attend
from lorry.model.base_loader import LoadedModel, load
from lorry.model.executor import Executor
from lorry.model.inputs import AttentionPlan, Inputs, build_inputs
from lorry.model.kv_cache import Shapes, bytes_per_token
from lorry.model.path_set import PathSet
from lorry.model.paths import FirstPass, Kernels, Sizes, checked, first_pass
from lorry.model.sight import EVERYTHING, Masks, Sight
from lorry.model.trial import Trial
from lorry.settings import Settings
from support import families, padded_families, tiny
from support.executor_driver import load_tiny
from support.families import config_of

Found = tuple[LoadedModel, FirstPass]
Ready = Callable[..., Found]


def serve(
    loaded: LoadedModel, found: FirstPass, block_size: int = 4, kv_blocks: int = 9
) -> Executor:
    """The paths of PyTorch's operations that the self-check finds right."""
    sizes = Sizes(kv_blocks, block_size, max_slots=2, max_rank=8)
    return checked(loaded, found, Kernels("torch", loaded.dtype, ""), sizes)


NAMES_OF_OTHERS = (
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
"""Most families' names of sizes, which GPT-Neo does not have."""


@pytest.fixture
def ready(tiny_model: Callable[[str], Path]) -> Ready:
    def of(family: str, quantization: str = "none") -> Found:
        loaded = load_tiny(tiny_model(family), quantization=quantization)
        return loaded, first_pass(loaded)

    return of


@pytest.fixture
def instead() -> Iterator[Callable[..., None]]:
    """`instead(function)`: what the modeling code calls in place of our attention."""
    yield lambda function: AttentionInterface.register(attention.NAME, function)
    AttentionInterface.register(attention.NAME, attend)


@pytest.mark.parametrize("family", [*families.REQUIRED, *families.EXTRA])
def test_a_good_model_passes(family: str, ready: Ready) -> None:
    serve(*ready(family))


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_one_too(quantization: str, ready: Ready) -> None:
    serve(*ready("llama", quantization))


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_it_fits_in_the_blocks_that_it_says_it_needs(block_size: int, ready: Ready) -> None:
    blocks = selfcheck.SHORT.blocks_needed(block_size)
    serve(*ready("llama"), block_size, blocks)


@pytest.mark.parametrize("family", padded_families.UNPACKABLE)
def test_what_cannot_be_packed_is_padded(family: str, tiny_model: Callable[[str], Path]) -> None:
    settings = Settings(
        model=str(tiny_model(family)),
        home=tiny_model(family),
        device="cpu",
        dtype="float32",
        quantize="none",
        # Not every config states a length.
        max_model_len=64,
    )
    loaded = load(settings, lambda _: None)
    paths = serve(loaded, first_pass(loaded)).paths
    assert paths.row_layout == "padded"
    assert paths.unpackable is not None and "interface" in paths.unpackable


# ---- deliberate mistakes


def across(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any
) -> Any:
    """One causal attention over the packed row: everybody sees everybody before them."""
    if isinstance(attention._current.get(), Recorder):
        return attend(module, query, key, value, *rest, **more)
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2), None


def ahead(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any
) -> Any:
    """Each token sees those after it, too."""
    if isinstance(attention._current.get(), Recorder):
        return attend(module, query, key, value, *rest, **more)
    out = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    return out.transpose(1, 2), None


def without(name: str) -> Callable[..., Any]:
    def dropped(*arguments: Any, **more: Any) -> Any:
        return attend(*arguments, **{**more, name: None})

    return dropped


@pytest.fixture
def no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The padded way closed, so that what is wrong with the packed one shows."""

    def closed(loaded: LoadedModel) -> Shapes:
        raise UnsupportedModel("there is no padding today")

    monkeypatch.setattr(padded, "measure", closed)


@pytest.mark.usefixtures("no_padding")
@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("broken", [across, ahead])
def test_sequences_that_see_what_they_must_not(
    broken: Callable[..., Any], quantization: str, ready: Ready, instead: Callable[..., None]
) -> None:
    pair = ready("llama", quantization)
    instead(broken)
    both = "LlamaForCausalLM is not served: packed .* differ .*; padded, there is no padding today"
    with pytest.raises(UnsupportedModel, match=both):
        serve(*pair)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("broken", [across, ahead])
def test_what_goes_wrong_packed_is_padded(
    broken: Callable[..., Any], quantization: str, ready: Ready, instead: Callable[..., None]
) -> None:
    loaded, found = ready("llama", quantization)
    instead(broken)
    made = serve(loaded, found)
    paths = made.paths
    assert paths.row_layout == "padded" and paths.kernels == "torch"
    assert paths.unpackable is not None and "differ from the same" in paths.unpackable
    assert paths.cache.nbytes == 37 * bytes_per_token(found.shapes, loaded.dtype)
    assert loaded.model.config._attn_implementation == padded.ATTENTION
    assert selfcheck.problem(made, loaded, []) is None


def test_a_cache_too_small_for_padded_rows(
    ready: Ready, instead: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = padded.measure

    def doubled(loaded: LoadedModel) -> Shapes:
        return {
            layer: replace(shape, heads=2 * shape.heads)
            for layer, shape in measured(loaded).items()
        }

    pair = ready("llama")
    instead(across)
    monkeypatch.setattr(padded, "measure", doubled)
    with pytest.raises(ModelError, match="--kv-cache-memory is too small"):
        serve(*pair)


@pytest.mark.usefixtures("no_padding")
@pytest.mark.parametrize(
    ("family", "dropped"),
    [("gemma2", "softcap"), ("granite", "scaling")],
)
def test_an_argument_that_is_dropped(
    family: str, dropped: str, ready: Ready, instead: Callable[..., None]
) -> None:
    pair = ready(family)
    instead(without(dropped))
    with pytest.raises(UnsupportedModel):
        serve(*pair)


@pytest.mark.usefixtures("no_padding")
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_positions_that_begin_anew_with_each_step(
    quantization: str, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **more: Any) -> Inputs:
        inputs = build_inputs(*arguments, **more)
        return replace(inputs, positions_1T=torch.arange(inputs.ids_1T.shape[1]).unsqueeze(0))

    pair = ready("llama", quantization)
    monkeypatch.setattr(executor, "build_inputs", broken)
    with pytest.raises(UnsupportedModel):
        serve(*pair)


@pytest.mark.parametrize("tensor", ["positions_BQ", "mask_BL", "read_X", "write_M"])
def test_padding_that_goes_wrong_too(
    tensor: str, ready: Ready, instead: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = padded._group

    def broken(*arguments: Any) -> Any:
        made = group(*arguments)
        wrong = {
            "positions_BQ": made.positions_BQ * 0,
            "mask_BL": made.mask_BL * 0 + 1,
            "read_X": made.read_X * 0,
            "write_M": made.write_M.flip(0),
        }
        return replace(made, **{tensor: wrong[tensor]})

    pair = ready("llama")
    instead(across)
    monkeypatch.setattr(padded, "_group", broken)
    with pytest.raises(UnsupportedModel, match=r"is not served: packed .*; padded, .* differ"):
        serve(*pair)


def test_a_cache_that_forgets(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed and padded."""
    pair = ready("llama")
    run = Executor.run

    def forgetful(self: Executor, batch: Any) -> Any:
        results = run(self, batch)
        for kv in self.paths.cache.layers:
            kv.v_NHD.zero_()
        return results

    monkeypatch.setattr(Executor, "run", forgetful)
    with pytest.raises(UnsupportedModel):
        serve(*pair)


@pytest.mark.usefixtures("no_padding")
def test_answers_that_go_on_without_their_past(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are right, the single tokens after them are not."""
    singles = AttentionPlan.singles
    pair = ready("llama")
    monkeypatch.setattr(AttentionPlan, "singles", lambda plan, sight: singles(plan, Sight(2)))
    with pytest.raises(UnsupportedModel):
        serve(*pair)


@pytest.mark.usefixtures("no_padding")
def test_numbers_that_are_none(ready: Ready, instead: Callable[..., None]) -> None:
    def broken(*arguments: Any, **more: Any) -> Any:
        out, _ = attend(*arguments, **more)
        return out * float("nan"), None

    pair = ready("llama")
    instead(broken)
    with pytest.raises(UnsupportedModel, match=r"differ .* by nan"):
        serve(*pair)


# ---- beyond the lengths at which a model changes what it does


def served(config: PretrainedConfig, folder: Path, quantization: str = "none") -> PathSet:
    loaded = load_tiny(tiny.save(config, folder), quantization=quantization)
    return serve(loaded, first_pass(loaded)).paths


@pytest.mark.usefixtures("no_padding")
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_window_that_is_dropped_is_found_however_long_it_is(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("MistralConfig", sliding_window=300, head_dim=16)()
    assert served(config, tmp_path, quantization).row_layout == "packed"
    monkeypatch.setattr(Masks, "sight", lambda *_: EVERYTHING)
    with pytest.raises(UnsupportedModel, match="differ"):
        served(config, tmp_path, quantization)


def longrope(threshold: int) -> PretrainedConfig:
    return config_of(
        "Phi3Config",
        original_max_position_embeddings=threshold,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": threshold,
        },
    )()


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_positions_that_depend_on_the_length_of_the_sequence(
    quantization: str, tmp_path: Path
) -> None:
    """Pieces of a prompt would be read at other frequencies than the whole."""
    loaded = load_tiny(tiny.save(longrope(300), tmp_path), quantization=quantization)
    loaded = replace(loaded, max_model_len=301)
    with pytest.raises(UnsupportedModel, match=r"packed .* differ .*; padded, .* differ"):
        serve(loaded, first_pass(loaded))


def test_and_those_of_a_length_that_no_sequence_reaches(tmp_path: Path) -> None:
    loaded = load_tiny(tiny.save(longrope(300), tmp_path))
    loaded = replace(loaded, max_model_len=300)
    serve(loaded, first_pass(loaded))


def test_a_length_in_a_table_that_cannot_be_cut_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-Neo's local layers make their mask when they are made, of 100 tokens."""
    config = config_of(
        "GPTNeoConfig",
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=100,
        **dict.fromkeys(NAMES_OF_OTHERS),
    )()
    lengths = []
    problem = Trial.problem

    def noted(trial: Trial, *rest: Any, **more: Any) -> str | None:
        lengths.append(max(trial.lengths))
        return problem(trial, *rest, **more)

    monkeypatch.setattr(Trial, "problem", noted)
    assert served(config, tmp_path).row_layout == "padded"
    assert max(lengths) > 100


def test_rounding_is_measured_and_not_guessed(ready: Ready) -> None:
    """What moved embeddings do to an answer is what may lie between two right ones."""
    pair = ready("llama", "int8")
    noise = selfcheck.SHORT.noise(serve(*pair), pair[0])
    assert 1e-6 < max(noise.moved) < 0.1
    assert max(noise.beside) < 0.1


def test_the_model_is_left_on_our_attention(ready: Ready) -> None:
    """Whatever the check found out."""
    pair = ready("llama")
    serve(*pair)
    assert pair[0].model.config._attn_implementation == attention.NAME
