"""`X-Request-Id` in answers and in the log."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from api.live import Live
from lorry import logs
from support.patience import wait_until

HEADER = "x-request-id"
CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged as JSON at `debug`; everybody else's logging is as it was afterwards."""
    root = logging.getLogger()
    names = ("lorry", "lorry_adapters", "uvicorn", "uvicorn.access", "uvicorn.error")
    loggers = [root, *(logging.getLogger(name) for name in names)]
    before = [(one, list(one.handlers), one.level, one.propagate) for one in loggers]
    stream = io.StringIO()
    logs.setup("debug", "json", stream)
    yield stream
    for one, handlers, level, propagate in before:
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)
    logging.captureWarnings(False)


def test_the_client_s_own_comes_back(live: Live) -> None:
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/chat/completions", {"messages": []}),
        ("/generate", {"inputs": ""}),
    ):
        answer = live.http.post(path, json=body, headers={HEADER: "kitchen-1"})
        assert answer.headers.get_list(HEADER) == ["kitchen-1"], path
    for path in ("/health", "/nothing", "/v1/models/nobody", "/docs"):
        assert live.http.get(path, headers={HEADER: "kitchen-2"}).headers[HEADER] == "kitchen-2"
    refused = live.http.post("/generate", json={"inputs": "x"}, headers={"Origin": "http://evil"})
    assert refused.status_code == 403 and refused.headers[HEADER]


def test_one_is_made_where_there_is_none_to_use(live: Live) -> None:
    made = [live.http.get("/health").headers[HEADER] for _ in range(3)]
    assert len(set(made)) == 3
    for strange in (b"", b"two words", b"x" * 129, b"caf\xe9"):
        given = live.http.get("/health", headers=[(HEADER.encode(), strange)]).headers[HEADER]
        assert given.isalnum() and len(given) == 32, strange


def test_the_log_has_it(live: Live, lines: io.StringIO) -> None:
    body = {**CHAT, "keep_alive": 1}
    live.http.post("/v1/chat/completions", json=body, headers={HEADER: "kitchen-3"})

    def found() -> list[dict[str, object]]:
        entries = [json.loads(line) for line in lines.getvalue().splitlines()]
        return [one for one in entries if one.get("request_id") == "kitchen-3"]

    wait_until(lambda: len(found()) > 0, "a line of the request's")
    assert "lorry.api.remarks" in {one["logger"] for one in found()}


def test_a_fault_of_the_server_s_has_it_too(
    live: Live, monkeypatch: pytest.MonkeyPatch, lines: io.StringIO
) -> None:
    def broken() -> None:
        raise RuntimeError("a fault that nobody foresaw")

    monkeypatch.setattr(live.server.registry, "records", broken)
    answer = live.http.get("/adapters", headers={HEADER: "kitchen-4"})
    assert (answer.status_code, answer.headers[HEADER]) == (500, "kitchen-4")
    # The connection ends with the fault, and the client knows.
    assert answer.headers["connection"] == "close"

    def traced() -> list[dict[str, object]]:
        entries = [json.loads(line) for line in lines.getvalue().splitlines()]
        return [one for one in entries if "nobody foresaw" in str(one.get("error"))]

    wait_until(lambda: bool(traced()), "the traceback")
    assert traced()[0]["request_id"] == "kitchen-4"
