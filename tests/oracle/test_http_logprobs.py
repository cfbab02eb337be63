"""`/generate` with `decoder_input_details` against PEFT, for every family and every kind of LoRA.

A real server on a socket: uploads, the registry, the scheduler, residency and sampling lie
between the question and the numbers. Slots are fewer than adapters and a step is short,
so adapters are evicted and prompts are cut into chunks while the requests run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, serve
from lorry.settings import Settings
from support import families
from support.fire import alone, together, token_ids
from support.peft_adapters import VARIANTS, pack
from support.peft_oracle import Adapters, PeftOracle
from support.server import body

TOLERANCE = 1e-4
PROMPTS = (
    "How do I cook rice?",
    "The harbour was quiet in the morning; the lorry waited at the gate with its lights on.",
    "A model answers.",
)
TOKENS = 10
Spec = list[tuple[str, float]]


@contextmanager
def serving(model: Path, home: Path, folders: dict[str, Path]) -> Iterator[Live]:
    """A server on `model` with `folders` uploaded by name."""
    settings = Settings(
        model=str(model),
        home=home,
        device="cpu",
        dtype="float32",
        quantize="none",
        kv_cache_memory=4 << 20,
        samples=False,
        max_loras=6,
        max_cpu_loras=10,
        max_num_seqs=8,
        max_num_batched_tokens=24,
    )
    with serve(settings) as live:
        for name, folder in folders.items():
            live.upload(name, pack(folder, home / f"{name}.zip")).raise_for_status()
        yield live


def specs() -> list[Spec]:
    a, b = "plain", "rank_pattern"
    mixed: list[Spec] = [[], [(a, 1.0)], [(b, 1.0)], [(a, 0.5)], [(a, 1.0), (b, 1.0)]]
    every: list[Spec] = [[(variant, 1.0)] for variant in VARIANTS]
    more: list[Spec] = [[("rslora", 2.0)], [("head", -1.0), ("regex", 0.5), ("small", 1.5)]]
    return mixed + every + more


def question(index: int, chosen: Spec) -> dict[str, Any]:
    adapter = [{"name": name, "scale": scale} for name, scale in chosen] or None
    return body(PROMPTS[index % len(PROMPTS)], adapter, TOKENS, decoder_input_details=True)


def check(answer: dict[str, Any], adapters: Adapters, oracle: PeftOracle) -> None:
    """Every logprob of the prompt and of the answer, and the choice of every token."""
    details = answer["details"]
    prompt = [entry["id"] for entry in details["prefill"]]
    drawn = token_ids(answer)
    assert len(drawn) == TOKENS
    table_TV = oracle.logprobs(adapters, prompt + drawn)
    assert details["prefill"][0]["logprob"] is None
    entries = details["prefill"][1:] + details["tokens"]
    for position, entry in enumerate(entries):
        expected = float(table_TV[position, entry["id"]])
        assert abs(entry["logprob"] - expected) < TOLERANCE, (position, adapters)
    assert drawn == table_TV[len(prompt) - 1 : -1].argmax(-1).tolist()


@pytest.mark.parametrize("family", [*families.REQUIRED, *families.EXTRA])
def test_generate_says_what_peft_says(
    family: str,
    tiny_model: Callable[[str], Path],
    peft_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folders = {variant: peft_adapter(family, variant) for variant in VARIANTS}
    oracle = PeftOracle(tiny_model(family))
    asked = specs()
    bodies = [question(index, chosen) for index, chosen in enumerate(asked)]
    with serving(tiny_model(family), tmp_path, folders) as live:
        fired = together(live.url, bodies)
        one_by_one = alone(live.url, bodies[:5])
        assert live.metric("lorry_adapter_evictions_total") > 0
        assert live.metric("lorry_engine_failed_steps_total") == 0
    for chosen, answer in zip(asked + asked[:5], fired + one_by_one, strict=True):
        check(answer, [(folders[name], scale) for name, scale in chosen], oracle)
    assert [token_ids(one) for one in one_by_one] == [token_ids(one) for one in fired[:5]]
