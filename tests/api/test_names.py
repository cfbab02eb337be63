"""What the base answers to: all its names, and what clients send where a server has one model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, refused, serve
from lorry.settings import Settings

FIRST, SECOND = "tiny", "org/Tiny-1.1"


@pytest.fixture(scope="module")
def named(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    archives: Callable[[int], Path],
) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    with serve(settings_for(home, served_model_name=f"{FIRST}, {SECOND}")) as one:
        assert one.upload("legal", archives(2)).status_code == 201
        yield one


def complete(live: Live, **extra: Any) -> dict[str, Any]:
    body = {"prompt": "Ahoy", "temperature": 0, "max_tokens": 6, **extra}
    answer = live.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [FIRST, SECOND, "tgi", "dummy"])
def test_the_base_by_every_name(named: Live, name: str) -> None:
    base = complete(named)
    answer = complete(named, model=name)
    assert (base["model"], answer["model"]) == (FIRST, name)
    assert answer["choices"] == base["choices"]
    assert answer["adapters"] == base["adapters"] == []
    chat = {"model": name, "messages": [{"role": "user", "content": "Ahoy"}], "max_tokens": 2}
    assert named.http.post("/v1/chat/completions", json=chat).status_code == 200
    vectors = {"model": name, "input": "Ahoy"}
    assert named.http.post("/v1/embeddings", json=vectors).status_code == 200


def test_the_list_has_the_names_that_were_given(named: Live) -> None:
    cards = named.http.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == [FIRST, SECOND, "legal"]
    assert [card["parent"] for card in cards] == [None, None, FIRST]
    assert named.http.get(f"/v1/models/{SECOND}").json() == cards[1]
    assert named.http.get("/v1/models/tgi").status_code == 404


def test_no_adapter_takes_a_name_of_the_base(named: Live, archives: Callable[[int], Path]) -> None:
    refused(named.upload(FIRST, archives(3)), 422, "invalid_adapter_name")


def test_an_adapter_of_a_placeholder_s_name_is_meant(
    named: Live, archives: Callable[[int], Path]
) -> None:
    assert named.upload("dummy", archives(3)).status_code == 201
    try:
        assert complete(named, model="dummy")["adapters"][0]["name"] == "dummy"
    finally:
        assert named.http.delete("/adapters/dummy").status_code == 204


@pytest.mark.parametrize("name", ["legl", "Legal", "legall", "lega"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/generate", {"inputs": "Ahoy", "adapter": "NAME"}),
        ("POST", "/generate", {"inputs": "Ahoy", "parameters": {"adapter_id": "NAME"}}),
        ("POST", "/generate", {"inputs": "Ahoy", "adapter": [{"name": "NAME", "scale": 1}]}),
        ("POST", "/embed", {"inputs": "Ahoy", "adapter": "NAME"}),
        ("POST", "/classify", {"inputs": "Ahoy", "adapter": "NAME"}),
        ("POST", "/v1/completions", {"prompt": "Ahoy", "adapter": "NAME"}),
        ("GET", "/adapters/NAME", None),
        ("GET", "/adapters/NAME/content", None),
        ("PATCH", "/adapters/NAME", {"scale": 1}),
        ("DELETE", "/adapters/NAME", None),
    ],
)
def test_the_adapter_that_was_probably_meant_is_named(
    named: Live, method: str, path: str, body: Any, name: str
) -> None:
    given = json.loads(json.dumps(body).replace("NAME", name))
    answer = named.http.request(method, path.replace("NAME", name), json=given)
    assert answer.status_code == 404, answer.text
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert message == f"no adapter is named {name!r}; did you mean 'legal'?"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("legl", "legal"),
        ("legall@1", "legal"),
        ("tinny", "tiny"),
        ("org/Tiny-1.0", "org/Tiny-1.1"),
    ],
)
def test_the_model_that_was_probably_meant_is_named(named: Live, name: str, meant: str) -> None:
    answer = named.http.post("/v1/completions", json={"model": name, "prompt": "Ahoy"})
    message = refused(answer, 404, "model_not_found")["message"]
    assert f"did you mean {meant!r}?" in message
    if "@" not in name:
        shown = named.http.get(f"/v1/models/{name}")
        assert refused(shown, 404, "model_not_found")["message"] == message


def test_nothing_is_suggested_for_what_is_like_nothing(named: Live) -> None:
    for name in ("gpt-4", "x", "L" * 5000):
        body = {"inputs": "Ahoy", "adapter": name}
        assert "did you mean" not in named.http.post("/generate", json=body).text
        model = {"model": name, "prompt": "Ahoy"}
        assert "did you mean" not in named.http.post("/v1/completions", json=model).text


def test_vllm_s_route_suggests_it_too(named: Live) -> None:
    answer = named.http.post("/v1/unload_lora_adapter", json={"lora_name": "legl"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].endswith("cannot be found. Did you mean 'legal'?")
