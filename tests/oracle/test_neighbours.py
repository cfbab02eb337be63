"""A row's tokens do not depend on its neighbours, nor on when it came.

In float32, and in int8 through the compiled step, which gives a row the same bits in any
company. (int8 without it rounds what PyTorch adds up in an order that depends on the batch:
a draw within 1e-3 of its border can fall on either side.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, serve
from lorry.settings import Settings
from support.compiled import require_compiled_step
from support.fire import alone, together, token_ids
from support.peft_adapters import pack
from support.server import body

ADAPTERS = ["plain", "large", "rslora", "mlp_only", "odd_rank", "all_linear", "head", "regex"]
REQUESTS = 64
TEXT = "the lorry waited at the gate and nobody knew what was in it until the morning came"


WAYS = [
    ("llama", "none", "torch"),
    ("llama", "int8", "compiled"),
    ("gemma2_odd", "int8", "compiled"),
    ("phi", "int8", "compiled"),
]


@pytest.fixture(scope="module", params=WAYS, ids=" ".join)
def live(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[str], Path],
    peft_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Live]:
    family, quantize, kernels = request.param
    if kernels == "compiled":
        require_compiled_step()
    home = tmp_path_factory.mktemp("neighbours")
    settings = Settings(
        model=str(tiny_model(family)),
        home=home,
        device="cpu",
        dtype="float32",
        quantize=quantize,
        kernels=kernels,
        # Too small for all that may run: some requests are preempted and start over. The
        # compiled step's cache is of half the bytes.
        kv_cache_memory=(256 if kernels == "compiled" else 512) << 10,
        samples=False,
        max_loras=5,
        max_num_seqs=24,
        max_num_batched_tokens=48,
    )
    with serve(settings) as one:
        for variant in ADAPTERS:
            archive = pack(peft_adapter(family, variant, seed=9), home / f"{variant}.zip")
            one.upload(variant, archive).raise_for_status()
        yield one


def requests(seed: int, **parameters: Any) -> list[dict[str, Any]]:
    """Base, single adapters, sums; scales; prompts of 1 to 60 words; answers of 8 to 40 tokens."""
    random_ = random.Random(seed)
    bodies = []
    for index in range(REQUESTS):
        names = random_.sample(ADAPTERS, random_.choice([0, 1, 1, 1, 2, 3]))
        scales = [random_.choice([1.0, 0.5, 2.0, -1.0, 0.0]) for _ in names]
        adapter = [{"name": n, "scale": s} for n, s in zip(names, scales, strict=True)] or None
        prompt = " ".join(random_.choices(TEXT.split(), k=random_.randint(1, 60)))
        own = {"seed": index, **parameters} if parameters else {}
        bodies.append(body(prompt, adapter, random_.randint(8, 40), **own))
    random_.shuffle(bodies)
    return bodies


@pytest.mark.parametrize(
    "parameters",
    [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}],
    ids=["greedy", "sampled", "filtered"],
)
def test_together_as_alone(live: Live, parameters: dict[str, Any]) -> None:
    bodies = requests(11, **parameters)
    one_by_one = [token_ids(answer) for answer in alone(live.url, bodies)]
    fired = [token_ids(answer) for answer in together(live.url, bodies)]
    assert fired == one_by_one
    order = list(range(REQUESTS))
    random.Random(5).shuffle(order)
    again = together(live.url, [bodies[index] for index in order])
    assert [token_ids(answer) for answer in again] == [one_by_one[index] for index in order]


def test_it_was_a_crowd(live: Live) -> None:
    """What the test above stands on did happen: preemption, eviction, no failed step."""
    together(live.url, requests(11))
    assert live.metric("vllm:num_preemptions_total") > 0
    assert live.metric("lorry_adapter_evictions_total") > 0
    assert live.metric("lorry_engine_failed_steps_total") == 0


def test_scale_zero_is_the_base_exactly(live: Live) -> None:
    """Every number of the answer, to the last digit."""
    specs: list[Any] = [None, [], {"name": "plain", "scale": 0}]
    specs += [[{"name": name, "scale": 0.0} for name in ADAPTERS]]
    asked = [body(TEXT, spec, 12, decoder_input_details=True, top_n_tokens=5) for spec in specs]
    base, *same = [answer["details"] for answer in alone(live.url, asked)]
    for details in same:
        assert details == base
