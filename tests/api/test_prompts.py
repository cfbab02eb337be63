"""Adapters with virtual tokens and activated LoRA over HTTP: what shows of them, what does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, serve
from lorry.settings import Settings
from support import peft_made
from support.kind import INVOCATION, PROMPT, VIRTUAL
from support.peft_kinds import KINDS

NAMES = {"brief": "prompt tuning", "prefixed": "prefix tuning", "called": "alora", "plain": "lora"}
ROOM = 512
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def made(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, peft_made.Made]:
    base, root = peft_made.load_base(tiny_model("llama")), tmp_path_factory.mktemp("made")
    return {
        name: peft_made.make(KINDS[kind], "llama", base, root / name)
        for name, kind in NAMES.items()
    }


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    made: dict[str, peft_made.Made],
    zip_of: Callable[..., Path],
) -> Iterator[Live]:
    with serve(settings_for(tmp_path_factory.mktemp("home"))) as one:
        for name, adapter in made.items():
            answer = one.upload(name, zip_of(adapter.folder))
            assert answer.status_code == 201, answer.text
        yield one


def tokens_of(live: Live, text: str) -> list[int]:
    return [one["id"] for one in live.http.post("/tokenize", json={"inputs": text}).json()]


def refused(live: Live, route: str, **body: Any) -> dict[str, Any]:
    answer = live.http.post(route, json=body)
    assert answer.status_code == (400 if route.startswith("/v1/") else 422), answer.text
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["brief", "prefixed", "called"])
def test_numbers_are_pefts(name: str, own: Live, made: dict[str, peft_made.Made]) -> None:
    answer = own.generate(PROMPT, adapter=name, parameters={"decoder_input_details": True})
    details = answer["details"]
    ids = [entry["id"] for entry in details["prefill"] + details["tokens"]]
    mine = [entry["logprob"] for entry in details["prefill"] + details["tokens"]]
    assert mine[0] is None
    theirs = made[name].logprobs(ids)
    assert max(abs(a - b) for a, b in zip(mine[1:], theirs, strict=True)) < TOLERANCE


@pytest.mark.parametrize("name", ["brief", "prefixed"])
def test_virtual_tokens_do_not_show(name: str, own: Live) -> None:
    ids = tokens_of(own, PROMPT)
    details = own.generate(PROMPT, adapter=name, parameters={"decoder_input_details": True})[
        "details"
    ]
    assert details["prompt_tokens"] == len(ids)
    assert [entry["id"] for entry in details["prefill"]] == ids
    body = {"model": name, "prompt": PROMPT, "max_tokens": 3, "temperature": 0}
    answer = own.http.post("/v1/completions", json={**body, "echo": True, "logprobs": 1}).json()
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["choices"][0]["text"].startswith(PROMPT)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(ids) + 3
    assert answer["adapters"][0]["name"] == name


@pytest.mark.parametrize("name", ["brief", "prefixed"])
def test_they_take_room(name: str, own: Live) -> None:
    """What is left to an answer without a limit of its own, and what is refused."""
    messages = [{"role": "user", "content": "How do I cook rice?"}]
    body = {"messages": messages, "temperature": 0, "ignore_eos": True}
    base = own.http.post("/v1/chat/completions", json=body).json()
    mine = own.http.post("/v1/chat/completions", json={**body, "model": name}).json()
    assert base["usage"]["total_tokens"] == ROOM
    assert mine["usage"]["total_tokens"] == ROOM - VIRTUAL
    assert mine["choices"][0]["finish_reason"] == "length"
    exactly = {"prompt": [9] * 480, "max_tokens": 32 - VIRTUAL, "temperature": 0, "model": name}
    assert own.http.post("/v1/completions", json=exactly).status_code == 200
    clipped = own.http.post("/v1/completions", json={**exactly, "max_tokens": 33 - VIRTUAL})
    assert clipped.json()["usage"]["total_tokens"] == ROOM - VIRTUAL
    error = refused(own, "/v1/completions", **{**exactly, "prompt": [9] * ROOM})["error"]
    assert error["code"] == "context_length_exceeded"
    assert f"its adapter puts {VIRTUAL} virtual ones before them" in error["message"]


def test_what_has_no_strength_has_no_scale(own: Live) -> None:
    answer = refused(own, "/generate", inputs=PROMPT, adapter={"name": "brief", "scale": 0.5})
    assert "PROMPT_TUNING, which has no strength to scale" in answer["error"]
    zero = own.generate(PROMPT, adapter={"name": "brief", "scale": 0})
    assert zero["generated_text"] == own.generate(PROMPT)["generated_text"]
    patched = own.http.patch("/adapters/brief", json={"scale": 0.5})
    assert patched.status_code == 422
    assert patched.json()["error"]["code"] == "invalid_scale"


def test_two_in_front_are_refused_by_name(own: Live) -> None:
    answer = refused(own, "/generate", inputs=PROMPT, adapter=["brief", "prefixed"])
    assert "'brief' and 'prefixed' each put virtual tokens" in answer["error"]
    summed = own.generate(PROMPT, adapter=["brief", {"name": "plain", "scale": 0.5}])
    alone = own.generate(PROMPT, adapter="brief")
    assert [used["name"] for used in summed["adapters"]] == ["brief", "plain"]
    assert summed["details"]["tokens"] != alone["details"]["tokens"]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/generate", {"inputs": "Ahoy"}),
        ("/v1/completions", {"prompt": "Ahoy"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Ahoy"}]}),
    ],
    ids=["generate", "completions", "chat"],
)
def test_without_its_call_an_activated_lora_is_refused(
    route: str, body: dict[str, Any], own: Live
) -> None:
    error = refused(own, route, adapter="called", **body)
    message = error["error"] if route == "/generate" else error["error"]["message"]
    assert "adapter 'called' is an activated LoRA" in message
    assert str(tokens_of(own, INVOCATION)[1:]) in message
    if route != "/generate":
        assert (error["error"]["code"], error["error"]["param"]) == (
            "invocation_missing",
            "adapter",
        )
    # Not asked to call at scale 0: it is not there.
    spec = {"name": "called", "scale": 0}
    assert own.http.post(route, json={**body, "adapter": spec}).status_code == 200


def test_a_message_can_call(own: Live) -> None:
    messages = [{"role": "user", "content": f"Wait{INVOCATION}"}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
    texts = [
        own.http.post("/v1/chat/completions", json={**body, "adapter": spec}).json()["choices"][0]
        for spec in (None, "called")
    ]
    assert texts[0]["message"] != texts[1]["message"]


def test_records_say_so(own: Live) -> None:
    brief, called = (own.http.get(f"/adapters/{name}").json() for name in ("brief", "called"))
    assert (brief["peft_type"], brief["virtual_tokens"]) == ("PROMPT_TUNING", VIRTUAL)
    assert (brief["scalable"], brief["invocation"], brief["rank"]) == (False, [], 0)
    assert called["invocation"] == tokens_of(own, INVOCATION)[1:]
    assert (called["scalable"], called["virtual_tokens"]) == (True, 0)
    assert brief["versions"][0]["virtual_tokens"] == VIRTUAL
