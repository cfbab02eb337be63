"""One forward pass for a batch: each row's result in its place, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch

from lorry.core import Batch, Row, RowResult, Sample, SamplingParams, SlotUse
from lorry.model.attention import Recorder, attending
from lorry.model.executor import Executor
from lorry.model.paths import Sizes, leave_cores
from lorry_adapters.errors import OutOfMemory
from lorry_adapters.lora import weights
from lorry_adapters.lora.weights import AdapterWeights, LoraPair
from support.executor_driver import drawn, load_tiny, tops, unchecked
from support.prompts import random_prompt

BLOCKS, BLOCK_SIZE = 64, 8
TOLERANCE = 2e-4


class Bench:
    """An executor whose slots 1 and 2 hold adapters, the second of them on the head too."""

    def __init__(self, folder: Path, adapters: Sequence[Path]) -> None:
        self.loaded = load_tiny(folder)
        self.adapters = [weights.load(path, str(path), self.loaded.layout) for path in adapters]
        self.executor = self.new()

    def new(self) -> Executor:
        sizes = Sizes(BLOCKS, BLOCK_SIZE, max_slots=3, max_rank=16)
        executor = unchecked(self.loaded, sizes)
        for slot, adapter in enumerate(self.adapters, start=1):
            executor.placement.place(slot, executor.placement.prepare(adapter))
        return executor

    def place(self, slot: int, adapter: AdapterWeights) -> None:
        placement = self.executor.placement
        placement.place(slot, placement.prepare(adapter))


@pytest.fixture
def bench(tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]) -> Bench:
    adapters = [peft_adapter("llama", variant, seed=5) for variant in ("plain", "head")]
    return Bench(tiny_model("llama"), adapters)


def prompt_row(
    name: int, length: int, *uses: tuple[int, float], sample: bool = True, targets: bool = True
) -> Row:
    """A whole prompt in blocks of its own."""
    ids = random_prompt(length, name)
    first = 4 * name
    params = SamplingParams(1, top_logprobs=2)
    return Row(
        str(name),
        ids,
        0,
        range(first, first + 4),
        tuple(SlotUse(*use) for use in uses),
        Sample(params, ids, (), None) if sample else None,
        ids[1:] if targets else None,
    )


def rows() -> list[Row]:
    return [
        prompt_row(0, 9, (1, 1.0)),
        prompt_row(1, 1, (2, 0.5)),
        prompt_row(2, 5),
        prompt_row(3, 12, (2, 1.0), (1, -0.5), sample=False),
        prompt_row(4, 1, targets=False),
        prompt_row(5, 7, (1, 2.0), targets=False),
        prompt_row(6, 30, (2, 1.0), sample=False, targets=False),
    ]


def check_same(one: RowResult, other: RowResult) -> None:
    for token, same in zip(drawn([one]), drawn([other]), strict=True):
        assert token.token_id == same.token_id
        assert token.logprob == pytest.approx(same.logprob, abs=TOLERANCE)
    lists = zip([one.prompt, *tops([one])], [other.prompt, *tops([other])], strict=True)
    for mine, theirs in lists:
        assert [entry.token_id for entry in mine] == [entry.token_id for entry in theirs]
        assert [entry.logprob for entry in mine] == pytest.approx(
            [entry.logprob for entry in theirs], abs=TOLERANCE
        )


@pytest.mark.parametrize(
    "order", [(0, 1, 2, 3, 4, 5, 6), (6, 4, 0, 5, 2, 1, 3), (3, 2, 6, 1, 5, 0, 4)]
)
def test_results_come_in_the_batches_order_and_are_those_of_each_row_alone(
    bench: Bench, order: Sequence[int]
) -> None:
    every = rows()
    together = bench.executor.run(Batch(tuple(every[n] for n in order)))
    assert len(together) == len(order)
    for n, result in zip(order, together, strict=True):
        (alone,) = bench.executor.run(Batch((every[n],)))
        check_same(result, alone)


def test_a_row_gets_what_it_asked_for(bench: Bench) -> None:
    results = bench.executor.run(Batch(tuple(rows())))
    assert [bool(result.drawn) for result in results] == [
        True, True, True, False, True, True, False,
    ]  # fmt: skip
    assert [len(result.prompt) for result in results] == [8, 0, 4, 11, 0, 0, 0]
    assert [len(top) for top in tops(results)] == [2, 2, 2, 2, 2]


def test_adapters_are_heard(bench: Bench) -> None:
    """Else most of this file could not fail."""
    ids_of = [prompt_row(0, 9, *uses) for uses in ([], [(1, 1.0)], [(2, 1.0)], [(1, 0.5)])]
    found = [bench.executor.run(Batch((row,)))[0].prompt for row in ids_of]
    for n, one in enumerate(found):
        for other in found[:n]:
            assert max(abs(a.logprob - b.logprob) for a, b in zip(one, other, strict=True)) > 0.1


def test_nothing_wanted_is_nothing_returned(bench: Bench) -> None:
    batch = Batch((prompt_row(0, 9, sample=False, targets=False),))
    assert bench.executor.run(batch) == [RowResult()]


def test_a_model_that_computes_all_logits_gets_the_same_answers(bench: Bench) -> None:
    """Modeling code without `logits_to_keep`: the head then sees every token."""
    expected = bench.executor.run(Batch(tuple(rows())))
    model: Any = bench.loaded.model
    forward = model.forward

    def whole(input_ids: Any, position_ids: Any, use_cache: bool) -> Any:
        return forward(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    model.forward = whole
    for adapted, base in [(n, m.base) for n, m in bench.executor.paths.lora.layers.items()]:
        parent, _, leaf = adapted.rpartition(".")
        setattr(model.get_submodule(parent), leaf, base)
    for mine, theirs in zip(bench.new().run(Batch(tuple(rows()))), expected, strict=True):
        check_same(mine, theirs)


def test_a_step_that_fails_leaves_nothing_behind(bench: Bench) -> None:
    good = Batch(tuple(rows()))
    expected = bench.executor.run(good)
    bad = replace(prompt_row(7, 3, (1, 1.0)), token_ids=[1, 10**6, 2])
    with pytest.raises(IndexError):
        bench.executor.run(Batch((*good.rows, bad)))
    for mine, theirs in zip(bench.executor.run(good), expected, strict=True):
        check_same(mine, theirs)
    # No step is open any more.
    with attending(Recorder()):
        pass


def test_an_adapter_that_overflows_harms_nobody_else(bench: Bench) -> None:
    """Every number of it is finite, so it was let in; what comes of it is not."""
    expected = bench.executor.run(Batch(tuple(rows())))
    modules = {
        name: LoraPair(
            torch.full((4, m.in_features), 1e30), torch.full((m.out_features, 4), 1e30), 1.0
        )
        for name, m in bench.loaded.layout.modules.items()
        if name.endswith(("v_proj", "k_proj", "down_proj"))
    }
    bench.place(3, AdapterWeights("huge", modules, 0))
    for length in (1, 2, 20):
        # In the first block, where whatever is padded might look.
        first = [replace(row, blocks=[block + 1 for block in row.blocks]) for row in rows()]
        wild = replace(prompt_row(9, length, (3, 16.0)), blocks=[0, *range(40, 43)])
        results = bench.executor.run(Batch((wild, *first)))
        (token,) = drawn(results[:1])
        assert not isfinite(token.logprob)
        for mine, theirs in zip(results[1:], expected, strict=True):
            check_same(mine, theirs)


def test_a_slot_is_taken_over_whole(bench: Bench) -> None:
    row = prompt_row(0, 9, (2, 1.0))
    before = bench.executor.run(Batch((row,)))
    bench.place(2, bench.adapters[0])
    (first,) = bench.executor.run(Batch((prompt_row(0, 9, (1, 1.0)),)))
    (second,) = bench.executor.run(Batch((row,)))
    check_same(first, second)
    bench.place(2, bench.adapters[1])
    check_same(bench.executor.run(Batch((row,)))[0], before[0])


def test_it_says_what_it_is(bench: Bench) -> None:
    assert bench.executor.paths.kernels == "torch"
    assert bench.executor.paths.slot_bytes == bench.executor.paths.lora.slot_bytes > 0
    leave_cores(bench.executor)
    bench.executor.paths.close()


@pytest.fixture(autouse=True)
def _gradients_stay_as_they_were() -> Iterator[None]:
    yield
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_memory_that_runs_out_is_told_as_such(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.executor.paths.general, "run", lambda inputs: torch.empty(1 << 60))
    with pytest.raises(OutOfMemory, match="a step needs 4611686018427387904 bytes"):
        bench.executor.run(Batch((prompt_row(0, 5),)))
