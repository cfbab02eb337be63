"""Models whose attention cannot be replaced: padded rows, with PEFT's logprobs to 1e-4.

The first three of them are asked about every kind of LoRA and about answers that go on
token by token; the others, further forms and further families, about one mixed batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from lorry.core import Batch, Row, Sample, SamplingParams, SlotUse
from lorry.model import padded
from support import padded_families
from support.executor_driver import Ask, ExecutorDriver, drawn, token_ids, tops
from support.peft_adapters import VARIANTS
from support.peft_oracle import PeftOracle
from support.prompts import random_prompt

TOLERANCE = 1e-4
ALONE = 1e-5
"""Largest difference that neighbours make."""
EVERY = [*padded_families.UNPACKABLE, *padded_families.PADDED_TOO]


class Both:
    def __init__(self, folder: Path, adapter: Callable[..., Path]) -> None:
        self.ours = ExecutorDriver(folder)
        self.theirs = PeftOracle(folder)
        self.adapter = adapter
        assert self.ours.executor.paths.row_layout == "padded"

    def asks(self) -> list[Ask]:
        """Base, two adapters, half of one, the sum: prompts of five lengths."""
        a, b = self.adapter("plain", seed=1), self.adapter("rank_pattern", seed=2)
        chosen = [[], [(a, 1.0)], [(b, 1.0)], [(a, 0.5)], [(a, 1.0), (b, 1.0)]]
        return [Ask(uses, random_prompt(5 + 9 * row, row)) for row, uses in enumerate(chosen)]

    def check(self, asks: list[Ask], *, chunk: int | None = None) -> None:
        for ask, mine in zip(asks, self.ours.score(asks, chunk=chunk), strict=True):
            theirs = self.theirs.prompt_logprobs(*ask.both)
            assert mine == pytest.approx(theirs, abs=TOLERANCE)


@pytest.fixture(scope="module")
def both(tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]) -> Callable:
    @lru_cache
    def of(family: str) -> Both:
        return Both(tiny_model(family), lambda *a, **k: peft_adapter(family, *a, **k))

    return of


@pytest.fixture(autouse=True)
def _slots_from_one(both: Callable[[str], Both], request: pytest.FixtureRequest) -> None:
    both(request.node.callspec.params["family"]).ours.forget_slots()


@pytest.mark.parametrize("family", padded_families.UNPACKABLE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_alone(family: str, variant: str, both: Callable[[str], Both]) -> None:
    pair = both(family)
    pair.check([Ask([(pair.adapter(variant), 1.0)], random_prompt(27, 1))])


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("chunk", [None, 1, 5, 16])
def test_mixed_batch(family: str, chunk: int | None, both: Callable[[str], Both]) -> None:
    pair = both(family)
    pair.check(pair.asks(), chunk=chunk)


@pytest.mark.parametrize("family", EVERY)
def test_decode(family: str, both: Callable[[str], Both]) -> None:
    """Tokens drawn one at a time, in one batch with prompts that are still being read."""
    pair = both(family)
    asks = pair.asks()
    for ask, results in zip(asks, pair.ours.greedy(asks, 12, chunk=7, top=5), strict=True):
        tokens = [token.token_id for token in drawn(results)]
        theirs = pair.theirs.logprobs(ask.adapters, [*ask.token_ids, *tokens])
        theirs = theirs[len(ask.token_ids) - 1 : -1]
        assert tokens == theirs.argmax(-1).tolist()
        for top, row_V in zip(tops(results), theirs, strict=True):
            values, _ = row_V.topk(5)
            got = torch.tensor([entry.logprob for entry in top])
            torch.testing.assert_close(got, values, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_neighbours_make_no_difference(
    family: str, chunk: int | None, both: Callable[[str], Both]
) -> None:
    pair = both(family)
    asks = pair.asks()
    together = pair.ours.score(asks, chunk=chunk)
    for ask, mine in zip(asks, together, strict=True):
        (alone,) = pair.ours.score([ask], chunk=chunk)
        assert mine == pytest.approx(alone, abs=ALONE, rel=2e-6)


@pytest.mark.parametrize("family", padded_families.UNPACKABLE)
def test_a_neighbour_that_overflows_harms_nobody(family: str, both: Callable[[str], Both]) -> None:
    """Its keys and values are no numbers, and it lies in the blocks that padding might read."""
    pair = both(family)
    wild = pair.ours.slot_of(pair.adapter("large", seed=3))

    def row(name: str, count: int, block: int, uses: tuple[SlotUse, ...] = ()) -> Row:
        ids = random_prompt(count, block)
        sample = Sample(SamplingParams(max_new_tokens=1), ids, (), None)
        blocks = range(block, block + 4)
        return Row(name, ids, 0, blocks, uses, sample, ids[1:])

    for lengths in [(1, 1, 1), (1, 20, 20), (20, 9, 20)]:
        calm = [row("short", lengths[1], 8), row("long", lengths[2], 16)]
        loud = row("wild", lengths[0], 0, (SlotUse(wild, 1e30),))
        before = [pair.ours.executor.run(Batch((one,)))[0] for one in calm]
        spoilt, *after = pair.ours.executor.run(Batch((loud, *calm)))
        (lost,) = drawn([spoilt])
        assert lost.logprob != lost.logprob
        for mine, theirs in zip(after, before, strict=True):
            assert token_ids([mine]) == token_ids([theirs])
            assert [entry.logprob for entry in mine.prompt] == pytest.approx(
                [entry.logprob for entry in theirs.prompt], abs=ALONE
            )


@pytest.mark.parametrize("family", ["bloom"])
def test_single_tokens_share_a_pass_and_prompts_of_a_length_do(
    family: str, both: Callable[[str], Both]
) -> None:
    counts = [1, 30, 1, 28, 9, 1, 200]
    rows = [Row(str(n), [0] * n, 0, (), (), None) for n in counts]
    groups = list(padded._groups(rows))
    assert [[counts[index] for index in group] for group in groups] == [
        [1, 1, 1],
        [9],
        [28, 30],
        [200],
    ]
    passes = []
    model = both(family).ours.loaded.model
    handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        both(family).ours.greedy(both(family).asks(), 2)
    finally:
        handle.remove()
    # Prompts of 5, of 14 and 23, of 32 and 41 tokens, then one pass for the five of them.
    assert len(passes) == 4
