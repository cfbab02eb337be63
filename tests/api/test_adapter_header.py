"""`X-Lorry-Adapter` on every route that an adapter answers: it repeats the body, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from api.live import BASE, Live

HEADER = "x-lorry-adapter"
MESSAGES = [{"role": "user", "content": "Ahoy"}]
CHAT = "/v1/chat/completions"

ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 2}}),
    ("/generate_stream", {"inputs": "x", "parameters": {"max_new_tokens": 2}}),
    ("/", {"inputs": "x", "parameters": {"max_new_tokens": 2}}),
    ("/embed", {"inputs": "x"}),
    ("/tokenize", {"prompt": "x"}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 2}),
    (CHAT, {"messages": MESSAGES, "max_tokens": 2}),
    ("/v1/responses", {"input": "x", "max_output_tokens": 2}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 2}),
    ("/v1/embeddings", {"input": "x"}),
]


def ask(live: Live, path: str, body: dict[str, Any], *values: str) -> tuple[int, Any]:
    answer = live.http.post(path, json=body, headers=[(HEADER, value) for value in values])
    if answer.status_code == 200:
        return 200, None
    told = answer.json()
    error = told["error"]
    return answer.status_code, error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=[path for path, _ in ROUTES])
def test_every_route_compares_it(live: Live, path: str, body: dict[str, Any]) -> None:
    pirate = {**body, "model" if path.startswith(("/v1/", "/tokenize")) else "adapter": "pirate"}
    assert ask(live, path, pirate, "pirate") == ask(live, path, pirate)
    status, message = ask(live, path, pirate, "legal")
    assert status == 400
    assert "X-Lorry-Adapter is 'legal', but the body asks for 'pirate'" in message


RIGHT: list[tuple[dict[str, Any], str]] = [
    ({"model": "pirate"}, "pirate"),
    ({"model": "pirate@1"}, "pirate"),
    ({"model": "pirate@1"}, "pirate@1"),
    ({"model": BASE}, BASE),
    ({"adapter": {"name": "pirate", "scale": 0.5}}, "pirate"),
    ({"adapter": ["pirate", {"name": "legal"}]}, "legal"),
    ({"adapter": None, "model": "pirate"}, "pirate"),
    ({"model": BASE, "adapter": "pirate"}, "pirate"),
    ({"model": "pirate"}, ""),
    ({}, ""),
]


@pytest.mark.parametrize(("fields", "value"), RIGHT)
def test_a_name_of_the_body_is_right(live: Live, fields: dict[str, Any], value: str) -> None:
    assert ask(live, CHAT, {"messages": MESSAGES, "max_tokens": 2, **fields}, value)[0] == 200


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"model": "pirate"}, "legal", "asks for 'pirate'"),
    ({"model": "pirate"}, "Pirate", "asks for 'pirate'"),
    ({"model": "pirate"}, "pirate@1", "asks for 'pirate'"),
    ({"model": "pirate@1"}, "pirate@2", "asks for 'pirate@1'"),
    ({"model": BASE}, "pirate", f"asks for '{BASE}'"),
    ({"model": BASE, "adapter": "pirate"}, BASE, "asks for 'pirate'"),
    ({"adapter": ["pirate", "legal"]}, "pirate,legal", "asks for 'pirate', 'legal'"),
    ({}, "pirate", "the header alone chooses none"),
]


@pytest.mark.parametrize(("fields", "value", "words"), WRONG)
def test_another_name_is_refused(
    live: Live, fields: dict[str, Any], value: str, words: str
) -> None:
    body = {"messages": MESSAGES, "max_tokens": 2, **fields}
    answer = live.http.post(CHAT, json=body, headers={HEADER: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("adapter_header_mismatch", "X-Lorry-Adapter")
    assert words in error["message"]


def test_it_is_one_name_and_a_message_repeats_only_its_beginning(live: Live) -> None:
    body = {"model": "pirate", "messages": MESSAGES, "max_tokens": 2}
    status, message = ask(live, CHAT, body, "pirate", "legal")
    assert status == 400 and "2 X-Lorry-Adapter headers" in message
    status, message = ask(live, CHAT, body, "x" * 9000)
    assert status == 400 and len(message) < 400


def test_lorax_s_fields_count(live: Live) -> None:
    body = {"inputs": "x", "parameters": {"adapter_id": "pirate", "max_new_tokens": 2}}
    assert ask(live, "/generate", body, "pirate")[0] == 200
    assert ask(live, "/generate", body, "legal")[0] == 400
    merged = {"ids": ["pirate", "legal"], "weights": [1, 1], "merge_strategy": "linear"}
    body = {"inputs": "x", "parameters": {"merged_adapters": merged, "max_new_tokens": 2}}
    assert ask(live, "/generate", body, "legal")[0] == 200
    assert ask(live, "/generate", body, "bard")[0] == 400


def test_an_unknown_adapter_is_still_404_and_administration_does_not_compare(live: Live) -> None:
    body = {"model": "nobody", "messages": MESSAGES, "max_tokens": 2}
    assert ask(live, CHAT, body, "nobody")[0] == 404
    answer = live.http.patch("/adapters/pirate", json={"description": ""}, headers={HEADER: "x"})
    assert answer.status_code == 200
    assert live.http.get("/adapters", headers={HEADER: "x"}).status_code == 200
