"""Attention over our cache, through whole models: however a sequence is cut in chunks, wherever
its blocks lie and whoever runs beside it, it gets the numbers of transformers' own attention."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM

from lorry.core import Batch, Row, Sample, SamplingParams
from lorry.errors import UnsupportedModel
from lorry.model import attention
from lorry.model.attention import HARMLESS, AttentionStep, Recorder, attend, attending
from lorry.model.base_loader import LoadedModel
from lorry.model.inputs import build_inputs
from lorry.model.kv_cache import KVCache, LayerShape
from lorry.model.packed import measure
from lorry.model.paths import FirstPass, Kernels, Sizes, build
from lorry.model.sight import Sight
from support.executor_driver import load_tiny
from support.prompts import random_prompt

FAMILIES = ["llama", "mistral", "gemma2", "granite", "gpt_oss"]
"""Grouped queries; a window of 8; one in every other layer, and a soft cap; a scale of its own;
sinks."""

BLOCK_SIZE, NUM_BLOCKS, LENGTH = 4, 64, 30
TOLERANCE = 2e-4
"""Of a log-probability in fp32; the tiny models' logits have a standard deviation of 3."""


class Bench:
    """One family's executor, and transformers' word on fixed prompts."""

    def __init__(self, folder: Path) -> None:
        self.loaded: LoadedModel = load_tiny(folder)
        shapes = measure(self.loaded)
        self.modules = list(shapes)
        self.executor = build(
            self.loaded,
            FirstPass(shapes),
            Kernels("torch", self.loaded.dtype, ""),
            Sizes(NUM_BLOCKS, BLOCK_SIZE, max_slots=2, max_rank=8),
        )
        self.prompts = [random_prompt(LENGTH, seed) for seed in range(4)]
        alone: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.inference_mode():
            self.tables = [
                alone(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
                for ids in self.prompts
            ]

    def expected(self, index: int, length: int) -> list[float]:
        """Log-probabilities of a prompt's tokens but the first, and of its likeliest next."""
        table_TV, ids = self.tables[index], self.prompts[index]
        rest = [float(table_TV[i, ids[i + 1]]) for i in range(length - 1)]
        return [*rest, float(table_TV[length - 1].max())]


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Bench:
    return Bench(tiny_model(request.param))


@dataclass
class Track:
    """One sequence, and the steps in which its chunks run."""

    index: int
    chunks: Sequence[int]
    joins: int

    @property
    def length(self) -> int:
        return sum(self.chunks)


def run(bench: Bench, tracks: Sequence[Track], seed: int) -> list[list[float]]:
    """Every step takes the next chunk of every track that has joined, in a random order."""
    chance = random.Random(seed)
    free = list(range(NUM_BLOCKS))
    chance.shuffle(free)
    blocks = [[free.pop() for _ in range(-(-track.length // BLOCK_SIZE))] for track in tracks]
    left = [list(track.chunks) for track in tracks]
    done = [0] * len(tracks)
    found: list[list[float]] = [[] for _ in tracks]
    step = 0
    while any(left):
        now = [n for n, track in enumerate(tracks) if left[n] and track.joins <= step]
        chance.shuffle(now)
        step += 1
        if not now:
            continue
        rows = []
        for n in now:
            ids = bench.prompts[tracks[n].index][: tracks[n].length]
            start, stop = done[n], done[n] + left[n].pop(0)
            done[n] = stop
            ends = stop == len(ids)
            rows.append(
                Row(
                    request_id=str(n),
                    token_ids=ids[start:stop],
                    start=start,
                    blocks=blocks[n],
                    adapters=(),
                    sample=Sample(SamplingParams(1), ids, (), None) if ends else None,
                    prompt_targets=ids[start + 1 : stop + 1],
                )
            )
        for n, result in zip(now, bench.executor.run(Batch(tuple(rows))), strict=True):
            found[n] += [entry.logprob for entry in result.prompt]
            found[n] += [one.token.logprob for one in result.drawn]
    return found


def check(bench: Bench, tracks: Sequence[Track], seed: int = 0) -> None:
    for track, found in zip(tracks, run(bench, tracks, seed), strict=True):
        assert found == pytest.approx(bench.expected(track.index, track.length), abs=TOLERANCE)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 29, 30])
def test_chunks_of_any_size(bench: Bench, size: int) -> None:
    chunks = [size] * (LENGTH // size) + ([LENGTH % size] if LENGTH % size else [])
    check(bench, [Track(0, chunks, 0)])


def test_decoding_beside_prompts_beside_chunks(bench: Bench) -> None:
    check(
        bench,
        [
            Track(0, [12, *[1] * 18], 0),
            Track(1, [3, *[1] * 20], 2),
            Track(2, [5, 5, 5, 1, 5], 1),
            Track(3, [30], 9),
        ],
    )


def test_many_single_rows_of_different_lengths(bench: Bench) -> None:
    check(bench, [Track(n, [3 + 7 * n, *[1] * 5], 0) for n in range(4)])


def test_a_prompt_of_one_token(bench: Bench) -> None:
    check(bench, [Track(0, [1], 0), Track(1, [30], 0), Track(2, [1, 1, 1], 0)])


def test_a_prompt_read_at_once_sees_what_later_pieces_read_from_the_cache() -> None:
    """In half precision those are rounded keys and values: were they not for the first piece, an
    answer would change where a preempted prompt is read in other pieces."""
    dice = torch.Generator().manual_seed(1)
    layer, shape = nn.Identity(), LayerShape(2, 16, 16)
    cache = KVCache(
        {layer: shape},
        num_blocks=8,
        block_size=BLOCK_SIZE,
        dtype=torch.float16,
        device=torch.device("cpu"),
    )
    # Few queries see few keys: what is rounded shows.
    query, key, value = (
        10 * torch.randn(1, heads, LENGTH, 16, generator=dice) for heads in (4, 2, 2)
    )

    def read(start: int, stop: int) -> Tensor:
        row = Row("", range(start, stop), start, range(8), (), None)
        inputs = build_inputs(
            Batch((row,)),
            block_size=BLOCK_SIZE,
            dtype=torch.float32,
            device=torch.device("cpu"),
            digest_of=str,
        )
        part = [tensor[:, :, start:stop] for tensor in (query, key, value)]
        with attending(AttentionStep(inputs.attention, cache)):
            return attend(layer, *part, None)[0]

    whole = read(0, LENGTH)
    for cuts in ([0, 1, 2, LENGTH], [0, 12, 13, LENGTH]):
        pieces = [read(*cut) for cut in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=5e-4)
    exact = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    assert 1e-3 < (whole - exact).abs().max() < 1, "nothing was rounded"


def cut_to_length(chunks: list[int]) -> list[int]:
    kept: list[int] = []
    for chunk in chunks:
        if sum(kept) + chunk <= LENGTH:
            kept.append(chunk)
    return kept


sizes = st.sampled_from([1, 1, 1, 2, 3, 5, 8])
cuts = st.lists(sizes, min_size=1, max_size=12).map(cut_to_length)


@settings(max_examples=25)
@given(
    tracks=st.lists(st.tuples(cuts, st.integers(0, 6)), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_any_cuts_in_any_company(
    bench: Bench, tracks: list[tuple[list[int], int]], seed: int
) -> None:
    check(bench, [Track(n, chunks, joins) for n, (chunks, joins) in enumerate(tracks)], seed)


def test_blocks_of_those_who_left_are_used_again(bench: Bench) -> None:
    for seed in range(4):
        check(bench, [Track(n, [9, *[1] * (seed + n)], n) for n in range(3)], seed)


# ---- who runs beside a sequence that has lost its numbers


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_neighbour_without_numbers_is_not_seen(bench: Bench, poison: float) -> None:
    """Whatever lies in the cells of another, the first block's first cell included, which a
    padded row of cells might well point to."""
    ids = bench.prompts[1]

    def decode(with_neighbour: bool) -> list[float]:
        layers = [bench.executor.paths.cache.layer(module) for module in bench.modules]
        score = Sample(SamplingParams(1), ids, (), None)
        short, long = [9, 7], [3, 4, 6, 5]
        prompts = [Row("a", ids[:5], 0, short, (), None), Row("b", ids[:13], 0, long, (), None)]
        bench.executor.run(Batch(tuple(prompts)))
        for kv in layers:
            kv.k_NHD[: 3 * BLOCK_SIZE] = poison
            kv.v_NHD[: 3 * BLOCK_SIZE] = poison
        rows = [
            Row("a", ids[5:6], 5, short, (), score),
            Row("b", ids[13:14], 13, long, (), score),
            Row("poisoned", ids[11:12], 11, [0, 1, 2], (), score),
        ]
        results = bench.executor.run(Batch(tuple(rows[: 2 + with_neighbour])))
        drawn = [one.token.logprob for result in results for one in result.drawn]
        assert not any(isfinite(logprob) for logprob in drawn[2:])
        return drawn[:2]

    expected = [bench.expected(1, 6)[-1], bench.expected(1, 14)[-1]]
    for with_neighbour in (False, True):
        assert decode(with_neighbour) == pytest.approx(expected, abs=TOLERANCE)
    # Not for the next test to stumble over.
    for module in bench.modules:
        bench.executor.paths.cache.layer(module).k_NHD.zero_()
        bench.executor.paths.cache.layer(module).v_NHD.zero_()


# ---- what it refuses


def call(**more: object) -> tuple[Tensor, None]:
    module = nn.Identity()
    x_1QTD = torch.zeros(1, 2, 3, 4)
    with attending(Recorder()):
        return attend(module, x_1QTD, x_1QTD, x_1QTD, None, **more)


def test_what_it_does_not_know_it_refuses_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="Identity passes 'indices' to attention"):
        call(indices=torch.zeros(2))
    with pytest.raises(UnsupportedModel):
        call(chunked_window=8)


def test_what_cannot_matter_it_lets_pass() -> None:
    call(indices=None, some_flag=False)
    call(**dict.fromkeys(HARMLESS, 1))


def test_outside_a_step_there_is_no_attention() -> None:
    x_1QTD = torch.zeros(1, 2, 3, 4)
    with pytest.raises(AssertionError):
        attend(nn.Identity(), x_1QTD, x_1QTD, x_1QTD, None)


def test_steps_do_not_nest_and_end_with_their_block() -> None:
    with pytest.raises(ZeroDivisionError), attending(Recorder()):
        with pytest.raises(AssertionError), attending(Recorder()):
            pass
        raise ZeroDivisionError
    with attending(Recorder()):
        pass


# ---- what a layer stores


def test_the_first_pass_notes_what_every_layer_stores(tiny_model: Callable[[str], Path]) -> None:
    cases = [("llama", [None, None]), ("mistral", [8, 8]), ("gemma2", [8, None])]
    for family, windows in cases:
        shapes = list(measure(load_tiny(tiny_model(family))).values())
        assert [shape.sight for shape in shapes] == [Sight(window) for window in windows]
        assert {(s.heads, s.key_size, s.value_size) for s in shapes} == {(2, 16, 16)}


@pytest.mark.parametrize("family", ["falcon", "gptj"])
def test_a_model_that_does_not_ask_us_is_refused(
    family: str, tiny_model: Callable[[str], Path]
) -> None:
    with pytest.raises(UnsupportedModel, match="does not go through transformers'"):
        measure(load_tiny(tiny_model(family)))


def test_registering_twice_is_no_mistake() -> None:
    attention.register()
    attention.register()
    assert AttentionInterface()[attention.NAME] is attend
