"""Streams of typed events that break off: their last event says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from api.live import serve
from api.other_words import events_in
from lorry.settings import Settings
from support.patience import ENDLESS, PATIENCE

PROMPT = "How do I cook rice?"
ANSWER: dict[str, Any] = {"stream": True, "ignore_eos": True}


def begun(pieces: Iterator[str]) -> str:
    """A stream up to its first text."""
    read = ""
    while "delta" not in read:
        read += next(pieces)
    return read


def test_the_last_event_tells_of_the_error(
    tmp_path: Path, settings_for: Callable[..., Settings], long_model: Path
) -> None:
    settings = settings_for(tmp_path / "home", model=str(long_model), kv_cache_memory=256 << 20)
    messages = [{"role": "user", "content": PROMPT}]
    asked = {**ANSWER, "messages": messages, "max_tokens": ENDLESS}
    more = {**ANSWER, "input": PROMPT, "max_output_tokens": ENDLESS}
    with (
        serve(settings) as own,
        own.http.stream("POST", "/v1/messages", json=asked) as message,
        own.http.stream("POST", "/v1/responses", json=more) as response,
    ):
        streams = [message.iter_text(), response.iter_text()]
        starts = [begun(stream) for stream in streams]
        loop = own.server.client._loop
        assert loop is not None
        asyncio.run_coroutine_threadsafe(own.server.client.drain(0), loop).result(PATIENCE)
        told, items = (
            events_in(start + "".join(rest)) for start, rest in zip(starts, streams, strict=True)
        )
        kept = own.http.get(f"/v1/responses/{items[-1]['response']['id']}")

    assert [event["type"] for event in told[:3]] == ["message_start", "ping", "content_block_start"]
    assert told[-1]["type"] == "error"
    assert told[-1]["error"]["type"] == "overloaded_error"
    assert "shut down" in told[-1]["error"]["message"]

    assert items[-1]["type"] == "response.failed"
    failed = items[-1]["response"]
    assert failed["status"] == "failed" and failed["usage"] is None
    assert failed["store"] is False and kept.status_code == 404
    assert failed["error"]["code"] == "server_error" and "shut down" in failed["error"]["message"]
    (item,) = failed["output"]
    assert item["status"] == "incomplete" and item["content"][0]["text"]
