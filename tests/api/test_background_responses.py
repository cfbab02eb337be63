"""`/v1/responses` with `background`: made while nobody waits, fetched, cancelled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.counted import counts
from api.live import Live, refused, serve
from api.test_responses import INPUT, post, respond, text_of
from lorry.settings import Settings
from support.patience import ENDLESS, wait_until

LONG: dict[str, Any] = {"max_output_tokens": ENDLESS, "ignore_eos": True}


def fetched(live: Live, made: dict[str, Any]) -> dict[str, Any]:
    found = live.http.get(f"/v1/responses/{made['id']}")
    assert found.status_code == 200, found.text
    return found.json()  # type: ignore[no-any-return]


def ended(live: Live, made: dict[str, Any]) -> dict[str, Any]:
    wait_until(lambda: fetched(live, made)["status"] != "in_progress")
    return fetched(live, made)


def cancelled(live: Live, made: dict[str, Any]) -> dict[str, Any]:
    answer = live.http.post(f"/v1/responses/{made['id']}/cancel")
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def test_it_is_the_response_that_a_waiting_client_has(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lorry.api.response_background")
    for more in ({}, {"model": "pirate"}):
        made = respond(live, background=True, **more)
        assert (made["status"], made["background"], made["store"]) == ("in_progress", True, True)
        assert (made["output"], made["usage"]) == ([], None)
        whole, expected = ended(live, made), respond(live, **more)
        assert whole["id"] == made["id"] and whole["status"] == expected["status"]
        assert text_of(whole) == text_of(expected)
        assert (counts(whole), whole["adapters"]) == (counts(expected), expected["adapters"])
        assert f"{made['id']} is {whole['status']}" in caplog.messages
        # It has ended, so this changes nothing.
        assert cancelled(live, whole) == whole
        more = {"input": "And then?", "previous_response_id": made["id"]}
        assert text_of(respond(live, **more))


def test_it_is_cancelled(long: Live) -> None:
    made = respond(long, background=True, **LONG)
    answer = post(long, input="And then?", previous_response_id=made["id"])
    error = refused(answer, 400, "invalid_request")
    assert error["param"] == "previous_response_id" and "still being made" in error["message"]
    stopped = cancelled(long, made)
    assert (stopped["status"], stopped["output"], stopped["usage"]) == ("cancelled", [], None)
    assert fetched(long, made) == stopped == cancelled(long, made)
    long.wait_until_idle()
    items = long.http.get(f"/v1/responses/{made['id']}/input_items").json()["data"]
    assert items[0]["content"][0]["text"] == INPUT


def test_it_is_deleted_while_it_is_made(long: Live) -> None:
    made = respond(long, background=True, model="pirate", **LONG)
    path = f"/v1/responses/{made['id']}"
    assert long.http.delete(path).json()["deleted"] is True
    long.wait_until_idle()
    refused(long.http.get(path), 404, "response_not_found")


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"stream": True}, "unsupported_parameter", "leave background or stream out"),
        ({"store": False}, "invalid_request", "leave store or background out"),
        ({"model": "nobody"}, "model_not_found", "nobody"),
        ({"max_output_tokens": 0}, "invalid_request", "max_output_tokens"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    live: Live, more: dict[str, Any], code: str, words: str
) -> None:
    status = 404 if code == "model_not_found" else 400
    assert words in refused(post(live, background=True, **more), status, code)["message"]


def test_one_that_fails_says_so(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("lorry.api.chat.answers", fails)
    whole = ended(live, respond(live, background=True))
    assert (whole["status"], whole["error"]["code"]) == ("failed", "server_error")
    assert "secret" not in whole["error"]["message"]


def test_they_wait_in_the_same_queue(
    tmp_path: Path, settings_for: Callable[..., Settings], long_model: Path
) -> None:
    settings = settings_for(
        tmp_path / "home",
        model=str(long_model),
        kv_cache_memory=64 << 20,
        max_queue=1,
        max_num_seqs=1,
    )
    endless = {"background": True, **LONG}
    with serve(settings) as own:
        runs = respond(own, **endless)
        wait_until(lambda: own.server.client.stats.running == 1)
        waits = respond(own, **endless)
        refused(post(own, background=True), 429, "queue_full")
        assert fetched(own, waits)["status"] == "in_progress"
        for one in (waits, runs):
            assert cancelled(own, one)["status"] == "cancelled"
        assert text_of(ended(own, respond(own, background=True)))


def test_it_needs_a_place_where_it_is_kept(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    with serve(settings_for(tmp_path / "home", keep_responses=0.0)) as own:
        error = refused(post(own, background=True), 400, "unsupported_parameter")
        assert "--keep-responses" in error["message"]
        own.wait_until_idle()
