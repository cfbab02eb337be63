"""A server whose base runs padded: what PEFT says, in a crowd, through preemption and eviction."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.live import serve
from lorry.settings import Settings
from support import padded_families
from support.fire import alone, together, token_ids
from support.peft_adapters import pack
from support.peft_oracle import PeftOracle
from support.server import body

TOLERANCE = 1e-4
VARIANTS = ["plain", "rslora", "rank_pattern", "head"]
TEXT = "the lorry waited at the gate and nobody knew what was in it until the morning came"


def requests() -> list[dict[str, Any]]:
    """Base, adapters, sums, scales; prompts of 1 to 40 words; answers of 6 to 30 tokens."""
    random_ = random.Random(3)
    bodies = []
    for _ in range(24):
        names = random_.sample(VARIANTS, random_.choice([0, 1, 1, 2]))
        adapter = [{"name": n, "scale": random_.choice([1.0, 0.5, -1.0])} for n in names] or None
        prompt = " ".join(random_.choices(TEXT.split(), k=random_.randint(1, 40)))
        bodies.append(body(prompt, adapter, random_.randint(6, 30), decoder_input_details=True))
    return bodies


@pytest.mark.parametrize("family", padded_families.UNPACKABLE)
def test_a_crowd(
    family: str,
    tiny_model: Callable[[str], Path],
    peft_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folders = {variant: peft_adapter(family, variant, seed=4) for variant in VARIANTS}
    settings = Settings(
        model=str(tiny_model(family)),
        home=tmp_path,
        device="cpu",
        dtype="float32",
        quantize="none",
        max_model_len=256,
        # Too small for all that may run: some requests are preempted and start over.
        kv_cache_memory=(64 << 10) if family == "falcon" else (256 << 10),
        samples=False,
        max_loras=3,
        max_num_seqs=12,
        max_num_batched_tokens=32,
    )
    bodies = requests()
    with serve(settings) as live:
        for variant, folder in folders.items():
            live.upload(variant, pack(folder, tmp_path / f"{variant}.zip")).raise_for_status()
        fired = together(live.url, bodies)
        assert live.metric("vllm:num_preemptions_total") > 0
        assert live.metric("lorry_adapter_evictions_total") > 0
        one_by_one = alone(live.url, bodies)
        info = live.http.get("/info").json()
        assert live.metric("lorry_engine_failed_steps_total") == 0
    assert (info["rows"], info["kernels"]) == ("padded", "torch")
    assert [token_ids(answer) for answer in fired] == [token_ids(answer) for answer in one_by_one]
    oracle = PeftOracle(tiny_model(family))
    for asked, answer in zip(bodies, fired, strict=True):
        chosen = asked["adapter"] or []
        details = answer["details"]
        prompt = [entry["id"] for entry in details["prefill"]]
        table_TV = oracle.logprobs(
            [(folders[one["name"]], one["scale"]) for one in chosen], prompt + token_ids(answer)
        )
        for position, entry in enumerate(details["prefill"][1:] + details["tokens"]):
            assert abs(entry["logprob"] - float(table_TV[position, entry["id"]])) < TOLERANCE
