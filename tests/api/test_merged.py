"""`merged_adapters`: what LoRAX's clients send, and PEFT's own merge as the truth."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from api.live import Live, serve

PROMPT = "How do I cook rice?"
TWO = {"ids": ["pirate", "legal"], "weights": [0.6, -0.4]}
TIES = {**TWO, "merge_strategy": "ties", "density": 0.5, "majority_sign_method": "total"}


@pytest.fixture(scope="module")
def live(tmp_path_factory, settings_for, archives) -> Iterator[Live]:
    """A server of their own: what these merge takes slots."""
    with serve(settings_for(tmp_path_factory.mktemp("home"))) as one:
        for seed, name in ((1, "pirate"), (2, "legal")):
            assert one.upload(name, archives(seed)).status_code == 201
        yield one


def ask(live: Live, merged: Any, **more: Any) -> dict[str, Any]:
    parameters = {"merged_adapters": merged, "decoder_input_details": True, **more}
    return live.generate(PROMPT, parameters=parameters)


@pytest.mark.parametrize("strategy", ["linear", "ties"])
def test_the_answer_is_that_of_pefts_merge(
    strategy: str, live: Live, tiny_model, peft_adapter
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, peft_adapter("llama", "plain", seed=1), "pirate")
    model.load_adapter(peft_adapter("llama", "plain", seed=2), "legal")
    model.add_weighted_adapter(TWO["ids"], TWO["weights"], "both", strategy, density=0.5)
    model.set_adapter("both")
    answer = ask(live, {**TIES, "merge_strategy": strategy})
    prefill = answer["details"]["prefill"]
    ids = [token["id"] for token in prefill]
    with torch.no_grad():
        table = torch.log_softmax(model.eval()(torch.tensor([ids])).logits[0].float(), dim=-1)
    expected = [float(table[at, ids[at + 1]]) for at in range(len(ids) - 1)]
    assert [token["logprob"] for token in prefill[1:]] == pytest.approx(expected, abs=1e-4)
    plain = live.generate(PROMPT, parameters={"decoder_input_details": True})
    other = [token["logprob"] for token in plain["details"]["prefill"][1:]]
    assert other != pytest.approx(expected, abs=0.1)


def test_the_answer_says_what_it_was_made_of(live: Live) -> None:
    (used,) = ask(live, TIES)["adapters"]
    assert (used["name"], used["version"], used["scale"]) == ("(merged)", 0, 1.0)
    assert [(part["name"], part["weight"]) for part in used["of"]] == [
        ("pirate", 0.6),
        ("legal", -0.4),
    ]
    known = {one["name"]: one["digest"] for one in live.http.get("/adapters").json()["adapters"]}
    assert [part["digest"] for part in used["of"]] == [known["pirate"], known["legal"]]
    assert used["digest"] not in known.values()
    assert "(merged)" not in known
    assert ask(live, TIES)["adapters"] == [used], "the same request, the same content"
    assert ask(live, TWO)["adapters"][0]["digest"] != used["digest"]


def test_a_stream_and_several_answers_have_it_too(live: Live) -> None:
    parameters = {"merged_adapters": TIES, "max_new_tokens": 3}
    body = {"inputs": PROMPT, "parameters": parameters, "stream": True}
    with live.http.stream("POST", "/generate", json=body) as response:
        events = [line for line in response.iter_lines() if line.startswith("data:")]
    assert '"of":' in events[0] and '"of":' in events[-1]
    best = ask(live, TIES, best_of=3, temperature=1.0)
    assert len(best["details"]["best_of_sequences"]) == 2
    assert best["adapters"] == ask(live, TIES)["adapters"]


def test_it_runs_beside_others_in_a_batch(live: Live) -> None:
    """Merged, base and adapter at once say what they say alone."""

    def texts(index: int) -> str:
        match index % 3:
            case 0:
                return str(ask(live, TIES)["generated_text"])
            case 1:
                return str(live.generate(PROMPT, adapter="pirate")["generated_text"])
        return str(live.generate(PROMPT)["generated_text"])

    alone = [texts(index) for index in range(3)]
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(texts, range(9)))
    assert together == alone * 3
    assert live.metric("lorry_adapter_requests_total", adapter="(merged)", version="0") > 0


@pytest.mark.parametrize(
    ("merged", "status", "said"),
    [
        ({"ids": ["pirate"], "weights": [1]}, 422, "from 2"),
        ({"ids": ["pirate", "legal"], "weights": [1]}, 422, "2 ids and 1 weights"),
        ({"ids": ["pirate", "nobody"], "weights": [1, 1]}, 404, "nobody"),
        ({"ids": ["pirate", "pirate"], "weights": [1, 1]}, 422, "twice"),
        ({**TWO, "merge_strategy": "cat"}, 422, "cat"),
        ({**TWO, "merge_strategy": "ties"}, 422, "density"),
        ({**TIES, "density": 0}, 422, "density"),
        ({**TIES, "majority_sign_method": "loudest"}, 422, "loudest"),
        ({**TWO, "weights": [99, 1]}, 422, "weights.0"),
        ({**TWO, "seed": 1}, 422, "unknown field parameters.merged_adapters.seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_makes_no_sense_is_refused(merged, status: int, said: str, live: Live) -> None:
    body = {"inputs": PROMPT, "parameters": {"merged_adapters": merged}}
    answer = live.http.post("/generate", json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


def test_what_cannot_be_merged_is_refused_with_what_does_combine_it(
    live: Live, peft_adapter, zip_of
) -> None:
    assert live.upload("small", zip_of(peft_adapter("llama", "small"))).status_code == 201
    merged = {"ids": ["pirate", "small"], "weights": [1, 1], "merge_strategy": "linear"}
    answer = live.http.post(
        "/generate", json={"inputs": PROMPT, "parameters": {"merged_adapters": merged}}
    )
    assert answer.status_code == 422, answer.text
    assert "one rank" in answer.json()["error"]
    assert "summed where `adapter` lists them" in answer.json()["error"]


def test_it_cannot_stand_beside_an_adapter(live: Live) -> None:
    body = {"inputs": PROMPT, "adapter": "pirate", "parameters": {"merged_adapters": TWO}}
    answer = live.http.post("/generate", json=body)
    assert answer.status_code == 422
    assert "both given" in answer.json()["error"]
