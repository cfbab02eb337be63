"""The evidence that the answers are right: our logprobs against transformers' and PEFT's.

Float32 on both sides. The two sides add the same numbers in another order (packed
rows, paged keys, grouped deltas), so equal means to 1e-4, about a hundred times the
error measured on these models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from support import families
from support.executor_driver import Ask, ExecutorDriver, drawn
from support.peft_adapters import VARIANTS
from support.peft_oracle import Adapters, PeftOracle
from support.prompts import random_prompt

TOLERANCE = 1e-4
FAMILIES = [*families.REQUIRED, *families.EXTRA]


class Both:
    """One model on both sides: ours, and theirs."""

    def __init__(self, folder: Path, adapter: Callable[..., Path]) -> None:
        self.ours = ExecutorDriver(folder)
        self.theirs = PeftOracle(folder)
        self.adapter = adapter

    def check(
        self, asks: list[Ask], *, chunk: int | None = None, tolerance: float = TOLERANCE
    ) -> None:
        """Prompt logprobs of one batch, every row against PEFT alone."""
        got = self.ours.score(asks, chunk=chunk)
        for index, (ask, mine) in enumerate(zip(asks, got, strict=True)):
            theirs = self.theirs.prompt_logprobs(ask.adapters, ask.token_ids)
            assert len(mine) == len(theirs)
            worst = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
            assert worst < tolerance, f"row {index}: {worst}"


@pytest.fixture(scope="module")
def both(tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]) -> Callable:
    @lru_cache
    def of(family: str) -> Both:
        pair = Both(tiny_model(family), lambda *a, **k: peft_adapter(family, *a, **k))
        return pair

    return of


@pytest.fixture(autouse=True)
def _slots_from_one(both: Callable[[str], Both], request: pytest.FixtureRequest) -> None:
    callspec = getattr(request.node, "callspec", None)
    both(callspec.params.get("family", "llama") if callspec else "llama").ours.forget_slots()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_alone(family: str, variant: str, both: Callable[[str], Both]) -> None:
    pair = both(family)
    pair.check([Ask([(pair.adapter(variant), 1.0)], random_prompt(27, 1))])


def mixed(pair: Both) -> list[Ask]:
    a, b = pair.adapter("plain", seed=1), pair.adapter("rank_pattern", seed=2)
    selections: list[Adapters] = [
        [],
        [(a, 1.0)],
        [(b, 1.0)],
        [(a, 0.5)],
        [(a, 1.0), (b, 1.0)],
    ]
    return [Ask(chosen, random_prompt(17 + 3 * row, row)) for row, chosen in enumerate(selections)]


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batch(family: str, both: Callable[[str], Both]) -> None:
    pair = both(family)
    pair.check(mixed(pair))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_mixed_batch_in_chunks(family: str, chunk: int, both: Callable[[str], Both]) -> None:
    pair = both(family)
    pair.check(mixed(pair), chunk=chunk)


@pytest.mark.parametrize("family", FAMILIES)
def test_decode(family: str, both: Callable[[str], Both]) -> None:
    """Tokens drawn one at a time from the cache: PEFT's arg max, and PEFT's logprobs."""
    pair = both(family)
    asks = mixed(pair)
    for ask, results in zip(asks, pair.ours.greedy(asks, 12, chunk=7, top=5), strict=True):
        tokens = [token.token_id for token in drawn(results)]
        theirs = pair.theirs.logprobs(ask.adapters, [*ask.token_ids, *tokens])
        theirs = theirs[len(ask.token_ids) - 1 : -1]
        assert tokens == theirs.argmax(-1).tolist()
        for result, row_V in zip(results, theirs, strict=True):
            (one,) = result.drawn
            assert abs(one.token.logprob - float(row_V.max())) < TOLERANCE
            values, ids = row_V.topk(5)
            assert [entry.token_id for entry in one.top] == ids.tolist()
            got = torch.tensor([entry.logprob for entry in one.top])
            torch.testing.assert_close(got, values, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_variants_in_one_batch(family: str, both: Callable[[str], Both]) -> None:
    """Ranks 1 to 16, every kind of target, own scales, pairs of them: a row each."""
    pair = both(family)
    chosen = ["rank_one", "odd_rank", "rslora", "one_module", "mlp_only", "regex", "head"]
    folders = [pair.adapter(variant, seed=7) for variant in chosen]
    asks = [Ask([(f, 0.25 * (i + 1))], random_prompt(9 + i, i)) for i, f in enumerate(folders)]
    asks += [
        Ask([(folders[i], -0.5), (folders[i + 1], 0.75)], random_prompt(12, 50 + i))
        for i in range(6)
    ]
    asks.append(Ask([(f, 0.3) for f in folders], random_prompt(12, 60)))
    pair.check(asks, chunk=8)


@pytest.mark.parametrize("scale", [2.0, 0.1, -1.0, 16.0, 1e-6])
def test_scale_is_set_scale(scale: float, both: Callable[[str], Both]) -> None:
    """Attention scores grow with the square of the scale, and their rounding with them: at
    16 both sides stray from PEFT in float64 by 1e-5, now and then by 1e-4."""
    pair = both("llama")
    for variant in ("plain", "rslora", "both_patterns_rslora"):
        asks = [Ask([(pair.adapter(variant), scale)], random_prompt(20, 3))]
        pair.check(asks, tolerance=TOLERANCE * max(1.0, scale))


def test_scale_zero_is_the_base_exactly(both: Callable[[str], Both]) -> None:
    """Bit for bit, in batches of one shape."""
    pair = both("llama")
    a, b = pair.adapter("plain", seed=1), pair.adapter("large", seed=2)
    ids = random_prompt(21, 9)
    neighbours = [Ask([(b, 1.0)], random_prompt(13, 10))]
    base = pair.ours.score([Ask([], ids), *neighbours])[0]
    zero = pair.ours.score([Ask([(a, 0.0)], ids), *neighbours])[0]
    two_zeros = pair.ours.score([Ask([(a, 0.0), (b, 0.0)], ids), *neighbours])[0]
    assert base == zero == two_zeros
    assert pair.ours.score([Ask([], ids)]) == pair.ours.score([Ask([(a, 0.0)], ids)])


def test_a_slot_forgets_what_it_held(both: Callable[[str], Both]) -> None:
    """A small adapter in the slot of a large one with more targets, and back."""
    pair = both("llama")
    for variant in ("large", "one_module", "all_linear", "rank_one", "head", "small", "regex"):
        folder = pair.adapter(variant, seed=3)
        pair.ours.place(1, folder)
        pair.check([Ask([(folder, 1.0)], random_prompt(15, 4)), Ask([], random_prompt(15, 4))])


def test_half_precision_files(
    both: Callable[[str], Both], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Adapters are often stored in bfloat16 or float16; they are computed in ours."""
    from support.peft_adapters import save_adapter

    pair = both("llama")
    for dtype in (torch.bfloat16, torch.float16):
        folder = save_adapter(
            "llama", tiny_model("llama"), "plain", tmp_path / str(dtype), dtype=dtype
        )
        pair.check([Ask([(folder, 1.0)], random_prompt(15, 4))])
