"""Streams: their frames, their errors, and clients that leave."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from api.live import Live
from support.patience import ENDLESS, wait_until

PROMPT = "How do I cook rice?"
WITHOUT_END = {"max_new_tokens": ENDLESS, "ignore_eos_token": True}


def events(live: Live, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = answer.text.split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data:{") for frame in frames)
    return [json.loads(frame.removeprefix("data:")) for frame in frames]


@pytest.mark.parametrize(
    ("path", "extra"),
    [("/generate_stream", {}), ("/generate", {"stream": True}), ("/", {"stream": True})],
)
def test_a_stream_says_what_the_whole_answer_says(
    live: Live, path: str, extra: dict[str, Any]
) -> None:
    parameters = {"max_new_tokens": 8, "top_n_tokens": 2, "temperature": 0.8, "seed": 4}
    # What is found in the prefix cache would round differently.
    parameters["cache_prompt"] = False
    whole = live.generate(PROMPT, adapter="pirate", parameters=parameters)
    body = {"inputs": PROMPT, "adapter": "pirate", "parameters": parameters, **extra}
    stream = events(live, path, body)
    assert [one["index"] for one in stream] == list(range(1, len(stream) + 1))
    assert [one["token"] for one in stream] == whole["details"]["tokens"]
    assert [one["top_tokens"] for one in stream] == whole["details"]["top_tokens"]
    assert all(one["generated_text"] is None and one["details"] is None for one in stream[:-1])
    last = stream[-1]
    assert last["generated_text"] == whole["generated_text"]
    assert last["adapters"] == stream[0]["adapters"] == whole["adapters"]
    prompt_tokens = whole["details"]["prompt_tokens"]
    assert 0 <= last["details"].pop("cached_tokens") < prompt_tokens
    assert last["details"] == {
        "finish_reason": whole["details"]["finish_reason"],
        "prompt_tokens": prompt_tokens,
        "input_length": prompt_tokens,
        "generated_tokens": len(stream),
        "draft_tokens": 0,
        "accepted_tokens": 0,
        "skipped_tokens": 0,
        "seed": 4,
    }


def test_frames_are_ascii(live: Live) -> None:
    """Some clients split lines at U+2028 and its like."""
    body = {
        "inputs": "\u2028",
        "parameters": {"max_new_tokens": 2, "return_full_text": True},
    }
    answer = live.http.post("/generate_stream", json=body)
    assert answer.content.isascii()
    assert "\\u2028" in answer.text


def test_a_stop_string_ends_a_stream(live: Live) -> None:
    whole = live.generate(PROMPT, parameters={"max_new_tokens": 30})["generated_text"]
    stop = whole[5:8]
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 30, "stop": [stop]}}
    stream = events(live, "/generate_stream", body)
    expected = whole[: whole.index(stop) + len(stop)]
    assert stream[-1]["generated_text"] == expected
    assert stream[-1]["details"]["finish_reason"] == "stop_sequence"
    assert "".join(one["token"]["text"] for one in stream) == expected


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        ({"adapter": "nobody"}, 404),
        ({"adapter": {"name": "pirate", "scale": 17}}, 422),
        ({"parameters": {"best_of": 2, "temperature": 1}}, 422),
        ({"parameters": {"decoder_input_details": True}}, 422),
    ],
)
def test_what_is_wrong_from_the_start_has_a_status(
    live: Live, extra: dict[str, Any], status: int
) -> None:
    answer = live.http.post("/generate_stream", json={"inputs": PROMPT, **extra})
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "error_type"}


def idle(live: Live) -> bool:
    stats = live.server.client.stats
    return (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)


def test_leaving_a_stream_cancels_it(long: Live) -> None:
    before = aborted(long)
    body = {"inputs": PROMPT, "adapter": "pirate", "parameters": WITHOUT_END}
    with long.http.stream("POST", "/generate_stream", json=body) as response:
        next(response.iter_lines())
    wait_until(lambda: idle(long))
    long.wait_until_idle()
    # The engine goes quiet before the response's task has counted it.
    wait_until(lambda: aborted(long) == before + 1)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_leaving_before_the_answer_cancels_it(long: Live, path: str) -> None:
    before = aborted(long)
    body: dict[str, Any] = {"inputs": PROMPT, "parameters": WITHOUT_END}
    if path == "/v1/completions":
        body = {"prompt": PROMPT, "max_tokens": ENDLESS, "ignore_eos": True}
    content = json.dumps(body).encode()
    host, port = long.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        wait_until(lambda: not idle(long))
    wait_until(lambda: idle(long))
    wait_until(lambda: aborted(long) == before + 1)


def aborted(live: Live) -> float:
    labels = {"model_name": "tiny", "engine": "0", "finished_reason": "abort"}
    return live.metric("vllm:request_success_total", **labels)
