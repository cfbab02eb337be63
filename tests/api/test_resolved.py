"""Adapters that are fetched because a request names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from api.fetching import PROMPT
from api.live import Live, refused, serve
from lorry.settings import Settings
from support.https_server import HttpsServer, Slow
from support.patience import client, wait_until

CHAT = [{"role": "user", "content": "Ahoy"}]


@pytest.fixture
def resolving(
    tmp_path: Path,
    settings_for: Callable[..., Settings],
    authority: trustme.CA,
    origin: HttpsServer,
    peft_adapter: Callable[..., Path],
) -> Iterator[Callable[..., Any]]:
    """Opens a server with resolvers. The hub has `org/legal`; `{origin}/legal` is a folder."""
    for file in peft_adapter("llama", "plain", seed=1).iterdir():
        for name in ("org/legal", "other/legal"):
            target = origin.root / name / "resolve" / "main" / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    origin.requests.clear()

    @contextmanager
    def open_it(*resolvers: str, **more: Any) -> Iterator[Live]:
        settings = settings_for(
            tmp_path / "home",
            adapter_sources=(origin.host, "127.0.0.1"),
            adapter_resolvers=resolvers,
            hub_endpoint=origin.url,
            max_upload=1 << 20,
            **{"resolve_retry": 3600.0, **more},
        )
        with serve(settings) as one:
            yield one

    with pytest.MonkeyPatch.context() as patch, authority.cert_pem.tempfile() as trusted:
        patch.setenv("SSL_CERT_FILE", trusted)
        yield open_it
    origin.answers.clear()


def names(live: Live) -> list[str]:
    return [one["name"] for one in live.http.get("/adapters").json()["adapters"]]


def generate(live: Live, name: str, **more: Any) -> Any:
    return live.http.post("/generate", json={"inputs": PROMPT, "adapter": name, **more})


def test_every_route_fetches_what_it_names(
    resolving: Callable[..., Any], origin: HttpsServer
) -> None:
    """LoRAX's `adapter_id`, OpenAI's `model`, and the others."""
    parameters = {"max_new_tokens": 3}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/generate", {"inputs": PROMPT, "parameters": parameters | {"adapter_id": "org/legal"}}),
        ("/generate", {"inputs": PROMPT, "adapter": "org/legal", "parameters": parameters}),
        ("/generate_stream", {"inputs": PROMPT, "adapter": {"name": "org/legal", "scale": 0.5}}),
        ("/generate", {"inputs": PROMPT, "adapter": ["org/legal"], "parameters": parameters}),
        ("/v1/completions", {"model": "org/legal", "prompt": PROMPT, "max_tokens": 3}),
        ("/v1/chat/completions", {"model": "org/legal", "messages": CHAT, "max_tokens": 3}),
        ("/v1/messages", {"model": "org/legal@1", "messages": CHAT, "max_tokens": 3}),
        ("/v1/responses", {"model": "org/legal", "input": PROMPT, "max_output_tokens": 3}),
        ("/v1/embeddings", {"model": "org/legal", "input": PROMPT}),
        ("/tokenize", {"model": "org/legal", "prompt": PROMPT}),
    ]
    with resolving("hub:nobody", "hub") as live:
        for path, body in bodies:
            answer = live.http.post(path, json=body)
            assert answer.status_code == 200, (path, answer.text)
            assert names(live) == ["org/legal"]
            assert live.http.delete("/adapters/org/legal").status_code == 204
        base = live.generate(PROMPT)["generated_text"]
        assert generate(live, "org/legal").json()["generated_text"] != base
        # Once it is there, nobody asks again.
        origin.requests.clear()
        assert generate(live, "org/legal").status_code == 200
        assert origin.requests == []


def test_an_organisation_and_a_prefix(resolving: Callable[..., Any], origin: HttpsServer) -> None:
    with resolving("hub:org", origin.url) as live:
        assert generate(live, "legal").status_code == 200
        origin.requests.clear()
        # The organisation has no other's, and the prefix looks for /other/legal.
        assert generate(live, "other/legal").status_code == 404
        assert [path for path, _ in origin.requests] == ["/other/legal/adapter_config.json"]
        assert names(live) == ["legal"]


def test_a_failure_is_remembered_for_a_while(
    resolving: Callable[..., Any], origin: HttpsServer
) -> None:
    with resolving("hub") as live:
        for _ in range(3):
            answer = generate(live, "org/nobody")
            assert answer.status_code == 404 and "no adapter is named" in answer.json()["error"]
        assert len(origin.requests) == 1
        for _ in range(3):
            answer = live.http.post("/v1/completions", json={"model": "org/no", "prompt": "x"})
            assert "is neither the base" in refused(answer, 404, "model_not_found")["message"]
        assert len(origin.requests) == 2
        # Whatever is no name, the base's name, and what clients send to servers with one model.
        for name in ("org//x", "../x", "tiny", "tgi", "x" * 200, "a b"):
            live.http.post("/v1/completions", json={"model": name, "prompt": "x", "max_tokens": 1})
        assert len(origin.requests) == 2
    with resolving("hub", resolve_retry=0.0) as live:
        origin.requests.clear()
        for _ in range(3):
            assert generate(live, "org/nobody").status_code == 404
        assert len(origin.requests) == 3


def test_what_is_found_and_is_no_adapter_is_told(
    resolving: Callable[..., Any], origin: HttpsServer
) -> None:
    bad = origin.root / "org" / "bad" / "resolve" / "main"
    bad.mkdir(parents=True)
    (bad / "adapter_config.json").write_text('{"peft_type": "NONSENSE"}')
    (bad / "adapter_model.safetensors").write_bytes(b"x" * 100)
    with resolving("hub") as live:
        for _ in range(2):
            error = generate(live, "org/bad").json()["error"]
            assert "fetching it failed" in error and "NONSENSE" in error
        answer = live.http.post("/v1/completions", json={"model": "org/bad", "prompt": "x"})
        assert "NONSENSE" in refused(answer, 404, "model_not_found")["message"]
        assert len([path for path, _ in origin.requests if "adapter_config" in path]) == 1
        assert names(live) == [] and live.generate(PROMPT)


def test_many_who_name_it_fetch_it_once(resolving: Callable[..., Any], origin: HttpsServer) -> None:
    config = origin.root / "org" / "legal" / "resolve" / "main" / "adapter_config.json"
    slow = origin.answers["/org/legal/resolve/main/adapter_config.json"] = Slow(config.read_bytes())
    with resolving("hub") as live, ThreadPoolExecutor(6) as pool:
        try:
            answers = [pool.submit(generate, live, "org/legal") for _ in range(6)]
            wait_until(lambda: bool(origin.requests))
            # Others go on.
            assert live.generate(PROMPT)
            assert not any(one.done() for one in answers)
        finally:
            slow.go_on.set()
        assert {one.result().status_code for one in answers} == {200}
    assert len([path for path, _ in origin.requests if "adapter_config" in path]) == 1


def test_the_rules_of_keys(resolving: Callable[..., Any], origin: HttpsServer) -> None:
    with resolving("hub", api_key="s3cret") as live:
        body = {"name": "tax", "scopes": ["generate"], "adapters": ["tax-*"]}
        tax = live.http.post("/keys", json=body).json()["key"]
        body = {"name": "few", "scopes": ["generate"], "limits": {"max_rank": 1}}
        few = live.http.post("/keys", json=body).json()["key"]
        with client(live.url) as other:
            other.headers["x-api-key"] = tax
            ask = {"inputs": PROMPT, "adapter": "org/legal"}
            assert other.post("/generate", json=ask).status_code == 404
            assert origin.requests == []
            other.headers["x-api-key"] = few
            assert other.post("/generate", json=ask).status_code == 403
        # One key's limit is nobody else's.
        assert generate(live, "org/legal").status_code == 200


def test_without_resolvers_nothing_is_asked(live: Live, origin: HttpsServer) -> None:
    origin.requests.clear()
    assert generate(live, "org/legal").status_code == 404
    assert origin.requests == []
