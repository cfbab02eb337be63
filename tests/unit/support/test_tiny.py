"""The tests' own ground: tiny models are deterministic, adapters are loud and distinct."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from support import families, padded_families, tiny
from support.peft_adapters import VARIANTS
from support.peft_oracle import PeftOracle

PROMPT = [1, 40, 77, 120, 9, 260, 300, 12, 44, 45, 201, 330]


@pytest.mark.parametrize("name", [*families.FAMILIES, *padded_families.UNPACKABLE])
def test_models_choose_clearly(name: str, tiny_model: Callable[[str], Path]) -> None:
    """No near ties among the first choices, and more than one word to say."""
    oracle = PeftOracle(tiny_model(name))
    answer = oracle.greedy([], PROMPT, 8)
    top2 = oracle.logprobs([], PROMPT + answer).topk(2).values
    assert float((top2[:, 0] - top2[:, 1]).min()) > 2e-4
    assert len(set(answer)) >= 3


@pytest.mark.parametrize("name", families.FAMILIES)
def test_tokenizers_round_trip(name: str, tiny_model: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(name))
    text = "Ahoy — ünïcode 🎉 and  two spaces\n"
    ids = tokenizer(text).input_ids
    assert (ids[0] == 1) == tiny.family(name).add_bos
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_are_loud(
    name: str, variant: str, tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]
) -> None:
    oracle = PeftOracle(tiny_model(name))
    base = oracle.logprobs([], PROMPT)
    a, b = (peft_adapter(name, variant, seed=seed) for seed in (0, 1))
    with_a, with_b = (oracle.logprobs([(path, 1.0)], PROMPT) for path in (a, b))
    both = oracle.logprobs([(a, 1.0), (b, 0.5)], PROMPT)
    for one, other in [(base, with_a), (with_a, with_b), (with_a, both)]:
        assert float((one - other).abs().amax()) > 0.1
    torch.testing.assert_close(oracle.logprobs([(a, 0.0)], PROMPT), base, rtol=0, atol=0)
