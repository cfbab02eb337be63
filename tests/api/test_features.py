"""Vectors as TEI, LoRAX and the hub's client ask for them, and what `POST /` makes of fields."""

from __future__ import annotations

from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import InferenceClient

from api.live import Live, refused

TEXTS = ["How do I cook rice?", "The harbour was quiet"]


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are offline, which to the hub's client means localhost, too."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def post(live: Live, path: str, **body: Any) -> Any:
    answer = live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def expected(live: Live, **more: Any) -> list[list[float]]:
    answer = post(live, "/v1/embeddings", input=TEXTS, **more)
    return [one["embedding"] for one in answer["data"]]


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=1e-5)


def test_tei_and_lorax_read_what_they_expect(live: Live) -> None:
    wanted = expected(live)
    close(post(live, "/embed", inputs=TEXTS, truncate=True, normalize=True), wanted)
    close(post(live, "/embed", inputs=TEXTS[0]), wanted[:1])
    lorax = post(live, "/embed", inputs=TEXTS[0], parameters=None, stream=False)
    assert lorax.keys() == {"embeddings"}
    close(lorax["embeddings"], wanted[0])
    named = post(live, "/embed", inputs=TEXTS[0], parameters={"adapter_id": "pirate"})
    close(named["embeddings"], expected(live, model="pirate")[0])
    assert named != lorax


def test_the_hub_s_client(live: Live) -> None:
    hub = InferenceClient(live.url, token="none")
    wanted = expected(live)
    close(hub.feature_extraction(TEXTS[0]), wanted[:1])
    close(hub.feature_extraction(TEXTS, normalize=True), wanted)
    close(hub.feature_extraction(TEXTS[0], normalize=False), expected(live, normalize=False)[:1])
    close(
        hub.sentence_similarity(TEXTS[0], other_sentences=TEXTS),
        [1.0, float(np.dot(wanted[0], wanted[1]))],
    )
    # Its generation goes to the same address.
    text = hub.text_generation(TEXTS[0], max_new_tokens=4)
    assert text == live.generate(TEXTS[0], parameters={"max_new_tokens": 4})["generated_text"]


def test_a_bare_address_tells_them_apart_by_their_fields(live: Live) -> None:
    wanted = expected(live)
    for more in ({"normalize": True}, {"truncate": False}, {"dimensions": len(wanted[0])}):
        close(post(live, "/", inputs=TEXTS[0], **more), wanted[:1])
    close(post(live, "/", inputs=TEXTS), wanted)
    short = {"max_new_tokens": 2}
    for body in ({"parameters": short}, {"parameters": short, "stream": False}):
        (answer,) = post(live, "/", inputs=TEXTS[0], **body)
        assert answer["generated_text"]
    # A text alone is a prompt, as for TGI.
    (answer,) = post(live, "/", inputs=TEXTS[0])
    assert answer["generated_text"]


def test_a_text_that_is_too_long_is_cut_on_demand(live: Live) -> None:
    long = "rice " * 600
    answer = live.http.post("/embed", json={"inputs": long})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    begin = post(live, "/embed", inputs=long + "tea", truncate=True)
    end = post(live, "/embed", inputs=long + "tea", truncate=True, truncation_direction="Left")
    close(begin, post(live, "/embed", inputs=long, truncate=True))
    assert begin != end


def test_shorter_vectors_are_the_first_numbers_made_of_length_one_again(live: Live) -> None:
    whole = np.asarray(expected(live, normalize=False))
    for path in ("/v1/embeddings", "/embed"):
        name = "input" if path.startswith("/v1") else "inputs"
        answer = post(live, path, **{name: TEXTS, "dimensions": 5})
        found = [one["embedding"] for one in answer["data"]] if name == "input" else answer
        cut = whole[:, :5]
        close(found, cut / np.linalg.norm(cut, axis=1, keepdims=True))
        raw = post(live, path, **{name: TEXTS, "dimensions": 5, "normalize": False})
        found = [one["embedding"] for one in raw["data"]] if name == "input" else raw
        close(found, cut)
    more = {"input": "x", "dimensions": whole.shape[1] + 1}
    error = refused(live.http.post("/v1/embeddings", json=more), 400, "invalid_request")
    assert error["param"] == "dimensions"


def test_a_list_may_be_longer_than_the_queue(live: Live) -> None:
    """LangChain sends 1000 texts at a time, unless it is told otherwise."""
    long = 2 * live.server.settings.max_queue
    texts = [TEXTS[index % 2] for index in range(long)]
    found = [one["embedding"] for one in post(live, "/v1/embeddings", input=texts)["data"]]
    close(found, expected(live) * (long // 2))
    for path, name in (("/v1/embeddings", "input"), ("/embed", "inputs")):
        answer = live.http.post(path, json={name: ["x"] * 2049})
        assert answer.status_code in (400, 422) and "the most is 2048" in answer.text
    assert live.server.registry.open_leases() == 0


def test_what_would_need_a_prompt_of_the_model_s_is_refused(live: Live) -> None:
    answer = live.http.post("/embed", json={"inputs": "x", "prompt_name": "query"})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_an_adapter_from_a_hub_is_refused_with_what_to_do(live: Live) -> None:
    parameters = {"adapter_id": "somebody/adapter", "adapter_source": "hub"}
    answer = live.http.post("/generate", json={"inputs": "x", "parameters": parameters})
    assert answer.status_code == 422
    assert "lorry adapters push" in answer.json()["error"]
