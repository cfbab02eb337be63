"""One line in the log for each request: what it was, and why it was refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from api.live import Live
from lorry.logs import fields_of
from support.patience import wait_until

SECRET = "the combination is 4711"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """The fields of every request's line so far, with `level` and `message`."""
    caplog.set_level(logging.DEBUG, logger="lorry.requests")

    def read() -> list[dict[str, Any]]:
        return [
            {**fields_of(record), "level": record.levelname, "message": record.getMessage()}
            for record in caplog.records
            if record.name == "lorry.requests"
        ]

    return read


def one(lines: Lines, message: str) -> dict[str, Any]:
    """The only line; it is written a moment after its answer is there."""

    def its() -> list[dict[str, Any]]:
        # The line of an earlier request may still be on its way.
        return [line for line in lines() if line["message"] == message]

    wait_until(lambda: bool(its()), "the line")
    (line,) = its()
    assert line["message"] == message
    return line


def test_an_answer_says_adapters_tokens_and_times(live: Live, lines: Lines) -> None:
    answer = live.generate(SECRET, adapter=["pirate", "legal@1"])
    line = one(lines, "POST /generate")
    assert (line["status"], line["level"]) == (200, "INFO")
    assert line["adapters"] == "pirate@1,legal@1"
    assert line["prompt_tokens"] == answer["details"]["prompt_tokens"]
    assert (line["generated_tokens"], line["finish"]) == (6, "length")
    assert 0 < line["first_token_s"] <= line["total_s"]
    assert line["client"] == "127.0.0.1"
    assert "4711" not in str(line)


@pytest.mark.parametrize("stream", [True, False])
def test_several_answers_are_one_request(live: Live, lines: Lines, stream: bool) -> None:
    body = {"prompt": [SECRET, "x"], "n": 2, "max_tokens": 3, "ignore_eos": True, "stream": stream}
    assert live.http.post("/v1/completions", json=body).status_code == 200
    line = one(lines, "POST /v1/completions")
    whole = live.http.post("/v1/completions", json={**body, "stream": False}).json()["usage"]
    assert line["prompt_tokens"] == whole["prompt_tokens"]
    assert line["generated_tokens"] == whole["completion_tokens"] == 12
    assert "adapters" not in line and "error" not in line


def test_vectors_have_tokens_too(live: Live, lines: Lines) -> None:
    answer = live.http.post("/v1/embeddings", json={"input": [SECRET, "x"], "model": "pirate"})
    line = one(lines, "POST /v1/embeddings")
    assert line["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert (line["adapters"], line["generated_tokens"]) == ("pirate@1", 0)
    assert "first_token_s" not in line


@pytest.mark.parametrize(
    ("path", "body", "code", "reason"),
    [
        ("/generate", {"inputs": "x", "adapter": "nobody"}, "unknown_adapter", "'nobody'"),
        ("/v1/completions", {"model": "nobody", "prompt": "x"}, "model_not_found", "'nobody'"),
        ("/generate", {"inputs": [SECRET]}, "invalid_request", "inputs must be a string"),
        ("/generate", {"inputs": "x", "parameters": {"seed": SECRET}}, "invalid_request", "seed"),
        ("/nothing-here", {}, "no_such_route", "there is no POST /nothing-here"),
    ],
)
def test_a_refusal_says_why_and_not_what_was_written(
    live: Live, lines: Lines, path: str, body: dict[str, Any], code: str, reason: str
) -> None:
    answer = live.http.post(path, json=body)
    line = one(lines, f"POST {path}")
    assert line["status"] == answer.status_code >= 400
    assert line["error"] == code
    assert reason in line["reason"]
    assert "4711" not in str(line)


def test_what_never_came_to_a_route_is_logged_too(live: Live, lines: Lines) -> None:
    live.http.get("/adapters", headers={"Host": "evil.example"})
    assert one(lines, "GET /adapters")["error"] == "foreign_host"


def test_health_checks_and_scrapes_are_quiet(live: Live, lines: Lines) -> None:
    for path in ("/health", "/health/live", "/metrics"):
        live.http.get(path)
        live.http.head(path)
    wait_until(lambda: len(lines()) == 6)
    assert {line["level"] for line in lines()} == {"DEBUG"}


def test_a_route_is_told_apart_from_what_it_was_asked_for(live: Live, lines: Lines) -> None:
    live.http.get("/adapters/pirate?x=4711")
    line = one(lines, "GET /adapters/pirate")
    assert line["route"] == "/adapters/{name}"
    assert "4711" not in str(line)
