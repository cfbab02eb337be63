"""What a layer sees is what transformers' own masks allow, not what is said beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import masking_utils as masks
from transformers.masking_utils import and_masks, causal_mask_function, or_masks

from lorry.errors import UnsupportedModel
from lorry.model.packed import measure
from lorry.model.sight import Masks, Sight
from support import decoders
from support.decoders import Decoder
from support.executor_driver import load_tiny

LONGEST = 60


def made(rule: Callable[..., Any], size: int | None = None) -> Sight:
    """What is found of a mask by that rule."""
    noted = Masks(LONGEST)
    mask = noted.make(
        mask_function=rule,
        local_size=size,
        batch_size=1,
        q_length=2,
        kv_length=2,
        q_offset=0,
        kv_offset=0,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return noted.sight(nn.Identity(), mask)


def chunked(size: int) -> Callable[..., Any]:
    return masks.chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.int64))


def test_what_transformers_masks_allow() -> None:
    assert made(causal_mask_function) == Sight()
    assert made(masks.sliding_window_causal_mask_function(8), 8) == Sight(window=8)
    assert made(chunked(8), 8) == Sight(chunk=8)


@pytest.mark.parametrize("size", [1, 2, 3, 29, 30, 31, LONGEST - 1])
def test_every_size(size: int) -> None:
    window = masks.sliding_window_causal_mask_function(size)
    assert made(window, size) == Sight(window=size)
    chunk = made(chunked(size), size)
    # A window of one token and chunks of one are the same.
    assert chunk == (Sight(window=1) if size == 1 else Sight(chunk=size))


def test_what_no_sequence_comes_to_the_end_of_is_no_limit() -> None:
    for size in (LONGEST, LONGEST + 1, 10_000):
        assert made(masks.sliding_window_causal_mask_function(size), size) == Sight()
        assert made(chunked(size), size) == Sight()


@pytest.mark.parametrize(
    "rule",
    [
        masks.bidirectional_mask_function,
        # A window of which nobody says how long it is.
        masks.sliding_window_causal_mask_function(8),
        or_masks(causal_mask_function, lambda b, h, q, k: k < 4),
        and_masks(causal_mask_function, lambda b, h, q, k: k != 3),
        # Tells of this pass's tokens only.
        and_masks(causal_mask_function, lambda b, h, q, k: torch.ones(2, dtype=torch.bool)[k]),
    ],
    ids=["all", "unsaid", "a prefix", "a hole", "looked up"],
)
def test_another_rule_is_none_that_packed_rows_have(rule: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedModel, match="Identity does not see just the last tokens"):
        made(rule)


def test_a_mask_that_nobody_asked_for() -> None:
    with pytest.raises(UnsupportedModel, match="Identity attends by a mask of its own"):
        Masks(LONGEST).sight(nn.Identity(), torch.zeros(1, 1, 2, 2))
    with pytest.raises(UnsupportedModel, match="Identity attends without a mask"):
        Masks(LONGEST).sight(nn.Identity(), None)


@pytest.mark.parametrize("sight", [Sight(), Sight(5), Sight(chunk=4), Sight(3, 4)])
def test_a_sight_s_mask_is_where_it_begins(sight: Sight) -> None:
    mask = sight.mask(torch.arange(3, 17), 17)
    for row, position in zip(mask, range(3, 17), strict=True):
        assert row.nonzero().flatten().tolist() == [*range(sight.begin(position), position + 1)]


@pytest.mark.parametrize(
    ("model_type", "variant", "own", "sights"),
    [
        # None of these says a word of it beside the mask.
        ("llama4_text", "", {}, [Sight(chunk=20), Sight()]),
        ("phimoe", "", {}, [Sight(window=20)] * 2),
        (
            "qwen2_moe",
            "sliding",
            {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None},
            [Sight(window=20), Sight()],
        ),
        ("qwen2_moe", "", {}, [Sight()] * 2),
    ],
)
def test_limits_that_only_the_mask_has(
    model_type: str, variant: str, own: dict[str, Any], sights: list[Sight], tmp_path: Path
) -> None:
    folder = decoders.save(Decoder(model_type, variant, own), tmp_path)
    assert [shape.sight for shape in measure(load_tiny(folder)).values()] == sights
