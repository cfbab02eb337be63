"""Speculative decoding over HTTP: the same answers, whoever asks for it, and what is told of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, serve
from lorry.settings import Settings
from support.compiled import require_compiled_step

TEXT = "one two three four five six seven eight, one two three four five six"
GREEDY = {"max_new_tokens": 60, "ignore_eos_token": True, "frequency_penalty": -2.0}


def generated(live: Live, wants: bool, **more: Any) -> dict[str, Any]:
    given = {**GREEDY, "details": True, "speculative": wants, **more}
    return live.generate(TEXT, parameters=given)


def without_numbers(text: str) -> str:
    """The server is on PyTorch's operations, which round otherwise where several tokens run."""
    return re.sub(r"-?\d+\.\d+", "", text)


def told(details: dict[str, Any]) -> tuple[int, int]:
    return details.pop("draft_tokens"), details.pop("accepted_tokens")


def test_the_answer_is_the_same_and_tells_what_was_drafted(live: Live) -> None:
    names = [
        f"vllm:spec_decode_num_{what}_total"
        for what in ("drafts", "draft_tokens", "accepted_tokens")
    ]
    before = [live.metric(name) for name in names]
    plain, drafted = generated(live, False), generated(live, True)
    assert told(plain["details"]) == (0, 0)
    drafts, accepted = told(drafted["details"])
    for answer in (plain, drafted):
        answer["details"].pop("cached_tokens")
    assert without_numbers(str(drafted)) == without_numbers(str(plain))
    # With such a penalty an answer ends in a loop.
    assert 0 < accepted <= drafts
    steps, *tokens = [live.metric(name) - was for name, was in zip(names, before, strict=True)]
    assert tokens == [drafts, accepted]
    assert 0 < steps < drafts


def test_it_is_counted_for_the_adapter(live: Live) -> None:
    of = {"adapter": "pirate", "version": "1"}
    names = [f"lorry_adapter_spec_decode_{what}_tokens_total" for what in ("draft", "accepted")]
    generated(live, False, adapter_id="pirate")
    before = [live.metric(name, **of) for name in names]
    made = told(generated(live, True, adapter_id="pirate")["details"])
    assert [live.metric(name, **of) - was for name, was in zip(names, before, strict=True)] == [
        *made
    ]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.3, "seed": 7, "top_p": 0.9, "repetition_penalty": 1.1},
        {"temperature": 0, "stop": ["e", "z"], "min_tokens": 9},
        {"temperature": 0, "logprobs": 3, "n": 2},
    ],
)
def test_every_parameter_gives_the_same(given: dict[str, Any], streamed: bool, live: Live) -> None:
    def asked(wants: bool) -> str:
        body = {"prompt": TEXT, "max_tokens": 40, "ignore_eos": True, "stream": streamed}
        answer = live.http.post("/v1/completions", json={**body, **given, "speculative": wants})
        assert answer.status_code == 200, answer.text
        if streamed:
            lines = [line for line in answer.text.splitlines() if '"text"' in line]
            return without_numbers(
                "".join(line[line.index('"choices"') :] for line in sorted(lines))
            )
        return without_numbers(str(answer.json()["choices"]))

    assert asked(True) == asked(False)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": TEXT}]}),
        ("/v1/responses", {"input": TEXT}),
    ],
)
def test_every_route_takes_the_field(path: str, body: dict[str, Any], live: Live) -> None:
    most = "max_output_tokens" if path.endswith("responses") else "max_tokens"
    for wants in (True, False, None):
        sent = {**body, most: 20, "temperature": 0, "speculative": wants}
        assert live.http.post(path, json=sent).status_code == 200


def test_what_llama_cpp_calls_it_is_taken_and_other_values_are_refused(live: Live) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    sent = live.http.post("/v1/completions", json={**body, "speculative.n_max": 16})
    assert sent.status_code == 200
    sent = live.http.post("/v1/completions", json={**body, "speculative": "ngram"})
    assert sent.status_code == 400
    assert "speculative" in sent.json()["error"]["message"]
    sent = live.http.post("/generate", json={"inputs": "x", "speculative": True})
    assert sent.status_code in (400, 422)


def test_a_server_can_draft_for_everybody(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """On the compiled step, where the numbers are the same, too; the engine is elsewhere."""
    require_compiled_step()
    settings = settings_for(
        tmp_path, speculative="ngram", quantize="int8", kernels="compiled", engine_process="on"
    )
    with serve(settings) as one:
        assert one.http.get("/info").json()["speculative"] == "ngram"
        given = {**GREEDY, "details": True}
        drafted = one.generate(TEXT, parameters=given)
        plain = generated(one, False)
        assert told(plain["details"]) == (0, 0)
        drafts, accepted = told(drafted["details"])
        assert 0 < accepted <= drafts
        for answer in (plain, drafted):
            answer["details"].pop("cached_tokens")
        assert drafted == plain


def test_others_are_drafted_from_answers_of_the_same_adapter(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    with serve(settings_for(tmp_path, speculative="ngram+answers")) as one:
        assert one.http.get("/info").json()["speculative"] == "ngram+answers"

        def accepted(**more: Any) -> int:
            # At this temperature nothing repeats; the same seed says the same again.
            given = {"max_new_tokens": 40, "temperature": 2.0, "seed": 5, "do_sample": True, **more}
            told = {"details": True, "ignore_eos_token": True}
            details = one.generate(TEXT, parameters={**given, **told})["details"]
            assert details["generated_tokens"] == 40
            return int(details["accepted_tokens"])

        assert accepted() < 5
        assert accepted() > 20
        assert accepted(cache_salt="another tenant") < 5
        assert accepted(cache_salt="another tenant") > 20
        assert accepted(cache_prompt=False) < 5
        assert accepted(speculative=False) == 0
