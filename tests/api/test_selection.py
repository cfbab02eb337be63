"""Adapters in requests: every spelling means the same, every mistake has its status."""

from __future__ import annotations

from typing import Any

import pytest

from api.live import Live

PROMPT = "What is the capital of the country?"


def used(answer: dict[str, Any]) -> list[tuple[str, int, float]]:
    return [(one["name"], one["version"], one["scale"]) for one in answer["adapters"]]


def test_the_adapters_differ_from_the_base_and_each_other(live: Live) -> None:
    specs: list[Any] = [None, "pirate", "legal", ["pirate", "legal"]]
    texts = [live.generate(PROMPT, adapter=spec)["generated_text"] for spec in specs]
    assert len(set(texts)) == 4


def test_every_spelling(live: Live) -> None:
    expected = live.generate(PROMPT, adapter="pirate")
    assert used(expected) == [("pirate", 1, 1.0)]
    for spec in ("pirate@1", {"name": "pirate"}, ["pirate"], {"name": "pirate", "scale": 1}):
        assert live.generate(PROMPT, adapter=spec) == expected
    assert live.generate(PROMPT, parameters={"adapter_id": "pirate"}) == expected
    both = live.generate(PROMPT, adapter="pirate", parameters={"adapter_id": {"name": "pirate"}})
    assert both == expected


def test_scale_0_is_the_base(live: Live) -> None:
    base = live.generate(PROMPT)["details"]["tokens"]
    zero = live.generate(PROMPT, adapter={"name": "pirate", "scale": 0})
    assert zero["details"]["tokens"] == base
    assert used(zero) == [("pirate", 1, 0.0)]
    assert live.generate(PROMPT, adapter=[])["details"]["tokens"] == base


def test_a_scale_is_used_and_told(live: Live) -> None:
    half = live.generate(PROMPT, adapter=[{"name": "pirate", "scale": 0.5}, "legal"])
    assert used(half) == [("pirate", 1, 0.5), ("legal", 1, 1.0)]
    tokens = [
        live.generate(PROMPT, adapter={"name": "pirate", "scale": scale})["details"]["tokens"]
        for scale in (0.5, 1, -1, 16)
    ]
    assert len({str(one) for one in tokens}) == 4


BAD: list[tuple[Any, int, str]] = [
    ("nobody", 404, "nobody"),
    ("org/name", 404, "org/name"),
    ("pirate@9", 404, "9"),
    ("", 422, "empty"),
    ("pirate@x", 422, "x"),
    (7, 422, "adapter must be"),
    ({"name": "pirate", "scale": 17}, 422, "-16 to 16"),
    ({"name": "pirate", "scale": "1"}, 422, "-16 to 16"),
    ({"name": "pirate", "scale": True}, 422, "-16 to 16"),
    ({"name": "pirate", "power": 1}, 422, "power"),
    (["pirate", "pirate"], 422, "pirate"),
    (["pirate", {"name": "pirate@1", "scale": 2}], 422, "pirate"),
    ([f"a{index}" for index in range(9)], 422, "9"),
    (["pirate", ["legal"]], 422, "adapter[1]"),
]


@pytest.mark.parametrize(("spec", "status", "words"), BAD)
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_bad_specs(live: Live, path: str, spec: Any, status: int, words: str) -> None:
    prompt: dict[str, Any] = {
        "/generate": {"inputs": "x"},
        "/v1/completions": {"prompt": "x"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    }[path]
    answer = live.http.post(path, json={**prompt, "adapter": spec})
    if path.startswith("/v1/") and status == 422:
        status = 400
    assert answer.status_code == status, answer.text
    body = answer.json()
    message = body["error"] if path == "/generate" else body["error"]["message"]
    assert words in message
    if path == "/generate":
        assert body["error_type"] == ("not_found" if status == 404 else "validation")
    else:
        assert body["error"].keys() >= {"message", "type", "param", "code"}


def test_two_different_specs_are_refused(live: Live) -> None:
    body = {"inputs": "x", "adapter": "pirate", "parameters": {"adapter_id": "legal"}}
    answer = live.http.post("/generate", json=body)
    assert answer.status_code == 422
    assert "adapter_id" in answer.json()["error"]


def test_model_selects_for_openai(live: Live) -> None:
    def complete(**extra: Any) -> dict[str, Any]:
        body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 6, **extra}
        answer = live.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    base = complete()
    pirate = complete(model="pirate")
    assert (base["model"], base["adapters"]) == ("tiny", [])
    assert (pirate["model"], used(pirate)) == ("pirate", [("pirate", 1, 1.0)])
    assert complete(model="tiny")["choices"] == base["choices"] != pirate["choices"]
    assert complete(model="pirate@1")["choices"] == pirate["choices"]
    wins = complete(model="legal", adapter={"name": "pirate"})
    assert (wins["choices"], used(wins)) == (pirate["choices"], used(pirate))
    # null is a spec too: the base model.
    assert complete(model="legal", adapter=None)["choices"] == base["choices"]


@pytest.mark.parametrize("model", ["gpt-4", "pirate@7", "tiny@1", "", "a/b", "pirate@"])
def test_an_unknown_model(live: Live, model: str) -> None:
    answer = live.http.post("/v1/completions", json={"model": model, "prompt": "x"})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_a_model_of_a_version_that_there_is_not_is_told_which_there_are(live: Live) -> None:
    answer = live.http.post("/v1/completions", json={"model": "pirate@7", "prompt": "x"})
    assert "adapter 'pirate' has no version 7; it has 1" in answer.json()["error"]["message"]
