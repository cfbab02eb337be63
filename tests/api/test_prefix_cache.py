"""The prefix cache over HTTP: hits are reported, and nobody finds what is not theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, serve
from lorry.settings import Settings
from support.patience import wait_until

STORY = "The lorry waited at the gate and nobody knew what was in it until the morning came. " * 3


def text_of(begin: str) -> str:
    """A prompt that no other test has, from its first block on."""
    return f"{begin} {STORY}"


TEMPLATE = 8
"""More tokens than any two chats begin with."""


def chat(live: Live, text: str, **more: Any) -> dict[str, Any]:
    body = {
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 4,
        "ignore_eos": True,
        **more,
    }
    answer = live.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def found_of(prompt: int) -> int:
    """Tokens of a prompt sent before that are found: all but the last, in whole blocks and a
    quarter of one at least."""
    whole, rest = divmod(prompt - 1, 16)
    return whole * 16 + (rest if rest >= 4 else 0)


def test_the_second_is_told_what_was_found(live: Live) -> None:
    text = text_of("one")
    first, second = chat(live, text), chat(live, text)
    prompt = first["usage"]["prompt_tokens"]
    assert cached(second) == found_of(prompt) > 0
    assert second["choices"] == first["choices"]


def test_every_route_tells_it(live: Live) -> None:
    """In a stream at its end; in Anthropic's form beside the rest of the input."""
    text = text_of("two")
    prompt = chat(live, text)["usage"]["prompt_tokens"]
    found = found_of(prompt)
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}
    message = live.http.post("/v1/messages", json=asked).json()["usage"]
    assert (message["input_tokens"], message["cache_read_input_tokens"]) == (prompt - found, found)
    body = {"input": text, "max_output_tokens": 4, "temperature": 0}
    response = live.http.post("/v1/responses", json=body).json()["usage"]
    assert response["input_tokens_details"]["cached_tokens"] == found
    live.generate(text)
    details = live.generate(text)["details"]
    assert details["cached_tokens"] == found_of(details["prompt_tokens"])
    streamed = live.http.post(
        "/v1/chat/completions",
        json={**asked, "stream": True, "stream_options": {"include_usage": True}},
    )
    assert f'"cached_tokens":{found}' in streamed.text.replace(" ", "")


def test_a_salt_and_a_refusal_keep_prompts_apart(live: Live) -> None:
    text = text_of("three")
    chat(live, text)
    assert cached(chat(live, text, cache_salt="mine")) == 0
    assert cached(chat(live, text, cache_salt="theirs")) == 0
    assert cached(chat(live, text, cache_salt="mine")) > 0
    assert cached(chat(live, text, cache_prompt=False)) == 0
    text = text_of("four")
    chat(live, text, cache_prompt=False)
    assert cached(chat(live, text)) < TEMPLATE
    live.generate(text, parameters={"cache_salt": "mine"})
    assert live.generate(text)["details"]["cached_tokens"] == 0
    assert live.generate(text, parameters={"cache_salt": "mine"})["details"]["cached_tokens"] > 0


def test_a_salt_has_an_end(live: Live) -> None:
    body = {"prompt": "x", "cache_salt": "x" * 257}
    answer = live.http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert "cache_salt" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/generate", "/tokenize"])
def test_where_it_would_do_nothing_it_is_refused(live: Live, path: str) -> None:
    body = {"inputs": "x", "text": "x", "prompt": "x", "cache_salt": "mine"}
    answer = live.http.post(path, json=body)
    assert answer.status_code in (400, 422)


def test_another_scale_version_or_adapter_is_another_prefix(live: Live) -> None:
    text = text_of("five")
    chat(live, text, adapter="pirate")
    assert cached(chat(live, text, adapter="pirate")) > 0
    assert cached(chat(live, text, adapter={"name": "pirate", "scale": 0.5})) == 0
    assert cached(chat(live, text, adapter=["pirate", "legal"])) == 0
    assert cached(chat(live, text)) < TEMPLATE
    # Scale 0 is the base.
    assert cached(chat(live, text, adapter={"name": "pirate", "scale": 0})) > 0


def test_it_is_counted_for_each_adapter(live: Live) -> None:
    def counted(name: str, **labels: str) -> tuple[float, float]:
        return (
            live.metric(f"{name}_queries_total", **labels),
            live.metric(f"{name}_hits_total", **labels),
        )

    text = text_of("six")
    of = {"adapter": "pirate", "version": "1"}
    before = counted("vllm:prefix_cache"), counted("lorry_adapter_prefix_cache", **of)
    first, second = (chat(live, text, adapter="pirate") for _ in range(2))
    asked = first["usage"]["prompt_tokens"] * 2
    found = cached(first) + cached(second)
    after = counted("vllm:prefix_cache"), counted("lorry_adapter_prefix_cache", **of)
    for (queries, hits), (more, hit) in zip(before, after, strict=True):
        assert (more - queries, hit - hits) == (asked, found)
    assert live.metric("lorry_prefix_cache_tokens") >= found
    assert live.http.get("/info").json()["prefix_cache"] == "on"


def test_vectors_share_and_can_stay_out(live: Live) -> None:
    body = {"input": text_of("seven"), "model": "pirate"}
    of = {"adapter": "pirate", "version": "1"}

    def hits() -> float:
        return live.metric("lorry_adapter_prefix_cache_hits_total", **of)

    vectors = []
    for more, shares in (({}, False), ({}, True), ({"cache_prompt": False}, False)):
        before = hits()
        answer = live.http.post("/v1/embeddings", json={**body, **more}).json()
        vectors.append(answer["data"][0]["embedding"])
        assert (hits() > before) == shares
    for vector in vectors[1:]:
        assert vector == pytest.approx(vectors[0], abs=1e-4)


def test_another_version_of_one_name_finds_nothing_of_the_last(
    fresh: Live, archives: Callable[[int], Path]
) -> None:
    text = text_of("eight")
    fresh.upload("legal", archives(1)).raise_for_status()
    first = chat(fresh, text, adapter="legal")
    assert cached(chat(fresh, text, adapter="legal")) > 0
    fresh.upload("legal", archives(2), replace="true").raise_for_status()
    second = chat(fresh, text, adapter="legal")
    assert cached(second) == 0
    assert second["choices"] != first["choices"]
    assert second["choices"] == chat(fresh, text, adapter="legal", cache_prompt=False)["choices"]
    # A digest is what it was, whatever its name.
    fresh.upload("other", archives(2)).raise_for_status()
    assert cached(chat(fresh, text, adapter="other")) > 0


def test_what_a_removed_adapter_left_is_freed(fresh: Live, archives: Callable[[int], Path]) -> None:
    fresh.upload("legal", archives(1)).raise_for_status()
    kept = fresh.metric("lorry_prefix_cache_tokens")
    chat(fresh, text_of("nine"), adapter="legal")
    assert fresh.metric("lorry_prefix_cache_tokens") > kept
    assert fresh.http.delete("/adapters/legal").status_code == 204
    # The engine hears of it between two steps; its numbers are those of the last one.
    wait_until(lambda: fresh.metric("lorry_prefix_cache_tokens") == kept, "the blocks to be freed")


def test_callers_can_be_kept_apart(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(
        tmp_path, prefix_cache_scope="caller", trusted_proxies=("127.0.0.1/32",)
    )
    with serve(settings) as one:
        found = []
        for caller in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
            one.http.headers["x-forwarded-for"] = caller
            found.append(cached(chat(one, text_of("ten"))))
        assert found[0] == found[1] == 0 < found[2]


def test_it_can_be_off(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    with serve(settings_for(tmp_path, prefix_cache="off")) as one:
        assert [cached(chat(one, text_of("eleven"))) for _ in range(2)] == [0, 0]
        assert one.http.get("/info").json()["prefix_cache"] == "off"
        assert one.metric("vllm:prefix_cache_queries_total") == 0
