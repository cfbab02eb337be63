"""Prompts of 8,000 tokens through a tiny model: in pieces as in one piece, and as transformers
computes them.

    in pieces    the same token, and on the compiled step the same bits of its log-probability
    transformers fp32, all tokens at once, log-probabilities to 1e-4
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorry.core import Request, SamplingParams, TokenLogprob
from lorry.engine.blocks import BlockPool
from lorry.engine.limits import Limits
from lorry.engine.prefix_cache import PrefixCache
from lorry.engine.scheduler import Scheduler
from lorry.model.executor import Executor
from lorry.model.paths import leave_cores
from support.compiled import require_compiled_step
from support.executor_driver import BLOCK_SIZE, SIZES, load_tiny, unchecked
from support.prompts import random_prompt
from support.tiny import save_model

LENGTH, LONGEST = 8000, 8192
PROMPT = random_prompt(LENGTH, 1)


class NoSlots:
    def acquire(self, digests: Sequence[str]) -> tuple[int, ...]:
        return ()

    def release(self, digests: Sequence[str]) -> None:
        pass

    def prefetch(self, digests: Sequence[str]) -> None:
        pass


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("long"), max_positions=LONGEST)


@pytest.fixture(scope="module", params=["compiled", "torch"])
def executor(request: pytest.FixtureRequest, long_model: Path) -> Iterator[Executor]:
    kernels = str(request.param)
    if kernels == "compiled":
        require_compiled_step()
    quantization = {"compiled": "int8", "torch": "none"}[kernels]
    sizes = replace(SIZES, kv_blocks=LONGEST // BLOCK_SIZE + 64, max_tokens=LONGEST)
    loaded = load_tiny(long_model, quantization=quantization, kernels=kernels)
    made = unchecked(loaded, sizes, kernels=kernels)
    leave_cores(made)
    assert made.paths.kernels == kernels
    yield made
    made.paths.close()


def answered(executor: Executor, *, budget: int, cached: bool = False) -> list[TokenLogprob]:
    """Four tokens behind the prompt. `cached`: behind half of it that was there already."""
    blocks = BlockPool(executor.paths.cache.num_blocks, BLOCK_SIZE)
    prefixes = PrefixCache(blocks, executor.path_of if cached else None)
    scheduler = Scheduler(Limits(2, budget, LONGEST), blocks, NoSlots(), prefixes)
    tokens: list[TokenLogprob] = []
    for name, ids in (("half", PROMPT[: LENGTH // 2]), ("all", PROMPT)):
        if name == "half" and not cached:
            continue
        scheduler.add(Request(name, tuple(ids), SamplingParams(4), (), 0.0))
        while scheduler.num_requests:
            batch = scheduler.schedule()
            assert batch is not None and batch.num_tokens <= budget
            for event in scheduler.commit(batch, executor.run(batch)):
                assert event.failure is None
                if name == "all":
                    tokens += [one.token for one in event.drawn]
    assert blocks.num_used == 0
    return tokens


def test_a_prompt_in_pieces_is_the_prompt_in_one_piece(executor: Executor) -> None:
    whole = answered(executor, budget=LONGEST)
    pieces = [answered(executor, budget=budget) for budget in (512, 333)]
    for made in (*pieces, answered(executor, budget=512, cached=True)):
        assert [one.token_id for one in made] == [one.token_id for one in whole]
        if executor.paths.kernels == "compiled":
            assert made == whole
        else:
            mine, theirs = ([one.logprob for one in tokens] for tokens in (made, whole))
            assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("executor", ["torch"], indirect=True)
def test_it_is_what_transformers_computes(executor: Executor, long_model: Path) -> None:
    made = answered(executor, budget=512)
    model = AutoModelForCausalLM.from_pretrained(long_model, dtype=torch.float32)
    ids = [*PROMPT, *(one.token_id for one in made)]
    with torch.inference_mode():
        logits_KV = model(torch.tensor([ids]), logits_to_keep=len(made) + 1).logits[0, :-1]
    logprobs_KV = logits_KV.log_softmax(-1)
    assert logprobs_KV.argmax(-1).tolist() == [one.token_id for one in made]
    expected = logprobs_KV.max(-1).values.tolist()
    assert [one.logprob for one in made] == pytest.approx(expected, abs=1e-4)
