"""API keys: made, changed, rotated and revoked on a running server; scopes, adapters, limits."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.live import Live, refused, serve
from lorry.access import keyring
from lorry.access.access_database import FILE
from lorry.access.quota import Quotas
from lorry.core import Request
from lorry.engine.letters import Submit
from lorry.settings import Settings
from support.patience import ENDLESS, client, wait_until


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def keyed(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    archives: Callable[[int], Path],
    long_model: Path,
) -> Iterator[Live]:
    """A server with a key in its settings, and the adapters `legal-a`, `legal-b` and `secret`."""
    home = tmp_path_factory.mktemp("home")
    settings = settings_for(home, api_key="s3cret", model=str(long_model), kv_cache_memory=64 << 20)
    with serve(settings) as one:
        for seed, name in ((1, "legal-a"), (2, "legal-b"), (3, "secret")):
            assert one.upload(name, archives(seed)).status_code == 201
        yield one


@pytest.fixture
def clock(keyed: Live) -> Iterator[Clock]:
    made = Clock()
    real, keyed.server.access.quotas._clock = keyed.server.access.quotas._clock, made
    yield made
    keyed.server.access.quotas._clock = real


@pytest.fixture
def new(keyed: Live) -> Iterator[Callable[..., httpx.Client]]:
    """`new("generate", adapters=["legal-*"], max_rank=4)`: a client with a key of its own."""
    made: list[tuple[str, httpx.Client]] = []

    def make(*scopes: str, adapters: list[str] | None = None, **limits: float) -> httpx.Client:
        name = f"key-{len(made)}"
        body = {"name": name, "scopes": list(scopes), "adapters": adapters, "limits": limits}
        answer = keyed.http.post("/keys", json=body)
        assert answer.status_code == 201, answer.text
        one = client(keyed.url)
        one.headers["Authorization"] = f"Bearer {answer.json()['key']}"
        made.append((name, one))
        return one

    yield make
    for name, one in made:
        assert keyed.http.delete(f"/keys/{name}").status_code == 204
        one.close()


def generate(of: httpx.Client, adapter: Any = None, tokens: int = 2) -> httpx.Response:
    body = {"inputs": "Ahoy", "adapter": adapter, "parameters": {"max_new_tokens": tokens}}
    return of.post("/generate", json=body)


def test_a_key_s_life(keyed: Live) -> None:
    body = {"name": "team", "scopes": ["generate"], "description": "of a team"}
    answer = keyed.http.post("/keys", json=body)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    text = made.pop("key")
    with client(keyed.url) as one:
        one.headers["x-api-key"] = text
        assert generate(one).status_code == 200
        shown = keyed.http.get("/keys/team").json()
        assert shown == made == keyed.http.get(f"/keys/{made['id']}").json()
        assert text not in keyed.http.get("/keys").text
        refused(keyed.http.post("/keys", json=body), 409, "key_conflict")
        refused(one.get("/keys"), 403, "scope_missing")

        rotated = keyed.http.post("/keys/team/rotate", json={}).json()
        assert rotated["id"] == made["id"] and rotated["key"] != text
        assert generate(one).status_code == 401
        one.headers["x-api-key"] = rotated["key"]
        assert generate(one).status_code == 200

        again = keyed.http.post("/keys/team/rotate", json={"keep_old": 3600}).json()
        assert generate(one).status_code == 200
        one.headers["x-api-key"] = again["key"]
        assert generate(one).status_code == 200

        # The same connection's next request.
        assert keyed.http.delete("/keys/team").status_code == 204
        answer = generate(one)
        assert answer.status_code == 401
        assert answer.json()["error"] == "the key in x-api-key is not this server's"
    refused(keyed.http.get("/keys/team"), 404, "unknown_key")


def test_a_description_that_a_database_does_not_store(keyed: Live, new: Any) -> None:
    new("generate")
    for answer in (
        keyed.http.post("/keys", json={"name": "b", "scopes": ["upload"], "description": "a\0b"}),
        keyed.http.patch("/keys/key-0", json={"description": "\0"}),
    ):
        assert answer.status_code == 422
        assert "description must be text without NUL" in answer.text


def test_an_old_key_ends_with_its_time(keyed: Live, new: Any, monkeypatch: Any) -> None:
    one = new("generate")
    keyed.http.post("/keys/key-0/rotate", json={"keep_old": 60})
    assert generate(one).status_code == 200
    monkeypatch.setattr(keyed.server.access.keyring, "_clock", lambda: 4e9)
    assert generate(one).status_code == 401


def test_only_a_digest_is_stored(keyed: Live, new: Any) -> None:
    text = new("generate").headers["Authorization"].removeprefix("Bearer ").encode()
    secret = text.rpartition(b"-")[2]
    home = keyed.server.settings.home
    assert (home / FILE).exists()
    for file in home.glob(f"{FILE}*"):
        content = file.read_bytes()
        assert secret not in content and bytes.fromhex(secret.decode()) not in content


def test_keys_are_compared_in_constant_time(keyed: Live, new: Any, monkeypatch: Any) -> None:
    """Also where there is no such key: the same number of comparisons, of 32 bytes each."""
    seen: list[tuple[int, int]] = []

    class Counting:
        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            seen.append((len(one), len(other)))
            return hmac.compare_digest(one, other)

    monkeypatch.setattr(keyring, "hmac", Counting)
    text = new("generate").headers["Authorization"].removeprefix("Bearer ")
    for given in (text, text[:-1] + "g", "lorry-000000000000-" + "0" * 64, "short", "\xff"):
        seen.clear()
        keyed.server.access.keyring.find(given.encode("latin-1"))
        assert seen == [(32, 32)] * 3


def test_a_foreign_adapter_is_an_unknown_one(keyed: Live, new: Any, archives: Any) -> None:
    """By every route, in the very words, and no list, hint or metric names it."""
    one = new("generate", "upload", adapters=["legal-*"])

    def same(method: str, path: str, body: Any = None) -> None:
        def ask(name: str) -> tuple[int, str]:
            sent = None if body is None else body(name)
            answer = one.request(method, path.replace("NAME", name), json=sent)
            return answer.status_code, answer.text.replace(name, "NAME")

        status, text = ask("secret")
        assert (status, text) == ask("zebras"), path
        assert status == 404 or "vllm" in path, (path, text)

    same("GET", "/adapters/NAME")
    same("GET", "/adapters/NAME/content")
    same("DELETE", "/adapters/NAME")
    same("DELETE", "/adapters/NAME?version=7")
    same("PATCH", "/adapters/NAME", lambda name: {"scale": 0.5})
    same("PUT", "/adapters/NAME", lambda name: {})
    same("GET", "/v1/models/NAME")
    same("POST", "/v1/unload_lora_adapter", lambda name: {"lora_name": name})
    same("POST", "/generate", lambda name: {"inputs": "x", "adapter": name})
    same("POST", "/generate", lambda name: {"inputs": "x", "adapter": ["legal-a", f"{name}@9"]})
    merging = {"weights": [1, 1]}
    same(
        "POST",
        "/generate",
        lambda name: {
            "inputs": "x",
            "parameters": {"merged_adapters": {"ids": ["legal-a", name], **merging}},
        },
    )
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    same("POST", "/v1/chat/completions", lambda name: {"model": name, **chat})
    same("POST", "/v1/chat/completions", lambda name: {"adapter": {"name": name}, **chat})
    same("POST", "/v1/messages", lambda name: {"model": name, **chat})
    same("POST", "/v1/messages/count_tokens", lambda name: {"model": name, **chat})
    same("POST", "/v1/completions", lambda name: {"model": name, "prompt": "x"})
    same("POST", "/v1/responses", lambda name: {"model": name, "input": "x"})
    same("POST", "/v1/embeddings", lambda name: {"model": name, "input": "x"})
    same("POST", "/tokenize", lambda name: {"model": name, "prompt": "x"})
    same("POST", "/detokenize", lambda name: {"model": name, "tokens": [5]})
    same("POST", "/classify", lambda name: {"inputs": "x", "adapter": name})
    same("POST", "/score", lambda name: {"model": name, "text_1": "x", "text_2": "y"})
    same("POST", "/rerank", lambda name: {"model": name, "query": "x", "documents": ["y"]})

    assert "secret" not in one.get("/adapters/secre").text
    assert "legal-a" in one.get("/adapters/legal-aa").text
    assert [a["name"] for a in one.get("/adapters").json()["adapters"]] == ["legal-a", "legal-b"]
    models = [model["id"] for model in one.get("/v1/models").json()["data"]]
    assert models == ["tiny", "legal-a", "legal-b"]
    refused(one.get("/metrics"), 403, "scope_missing")
    assert generate(one, "legal-a").status_code == 200
    assert keyed.http.get("/adapters/secret").status_code == 200

    # A new name beyond the list is refused, and it cannot be found out whether it exists.
    for name in ("secret", "zebras"):
        with archives(3).open("rb") as file:
            answer = one.post("/adapters", data={"name": name}, files={"file": ("a.zip", file)})
        error = refused(answer, 403, "forbidden_adapter")
        assert error["message"] == (
            f"key 'key-0' may not have an adapter {name!r}; its adapters are legal-*"
        )


def test_metrics_are_open_until_there_are_keys(keyed: Live, new: Any) -> None:
    with client(keyed.url) as nobody:
        assert nobody.get("/metrics").status_code == 200
        one = new("generate")
        assert nobody.get("/metrics").status_code == 401
        assert one.get("/metrics").status_code == 200


def test_an_owner_of_the_same_content_is_not_named(
    keyed: Live, new: Any, archives: Callable[[int], Path]
) -> None:
    one = new("generate", "upload", adapters=["legal-*"])
    with archives(3).open("rb") as file:
        answer = one.post("/adapters", data={"name": "legal-c"}, files={"file": ("a.zip", file)})
    assert answer.status_code == 201
    try:
        keyed.server.registry.mark_broken(answer.json()["digest"], "it is spoilt")
        answer = generate(one, "legal-c")
        assert answer.status_code == 422
        assert "legal-c" in answer.text and "secret" not in answer.text
    finally:
        assert keyed.upload("secret", archives(3)).status_code == 200
        assert one.delete("/adapters/legal-c").status_code == 204


def test_requests_a_minute(keyed: Live, new: Any, clock: Clock) -> None:
    one = new("generate", requests_per_minute=2)
    assert [generate(one).status_code for _ in range(3)] == [200, 200, 429]
    answer = one.get("/v1/models")
    error = refused(answer, 429, "rate_limited")
    assert error["message"] == (
        "key 'key-0' is limited to 2 by its requests_per_minute; try again in 30 s"
    )
    assert answer.headers["retry-after"] == "30"
    clock.now += 30
    assert [generate(one).status_code for _ in range(2)] == [200, 429]
    # A change of a limit is in force at once.
    change = {"limits": {"requests_per_minute": None}}
    assert keyed.http.patch("/keys/key-0", json=change).status_code == 200
    assert [generate(one).status_code for _ in range(3)] == [200] * 3


def test_tokens_a_minute(keyed: Live, new: Any, clock: Clock) -> None:
    one = new("generate", tokens_per_minute=60)
    body = {"prompt": [5] * 20, "max_tokens": 50, "ignore_eos": True}
    answer = one.post("/v1/completions", json=body)
    assert answer.status_code == 200
    assert answer.json()["usage"]["total_tokens"] == 70
    answer = one.post("/v1/completions", json=body)
    error = refused(answer, 429, "rate_limited")
    assert "tokens_per_minute" in error["message"] and answer.headers["retry-after"] == "11"
    clock.now += 11
    body["max_tokens"] = 1
    assert one.post("/v1/completions", json=body).status_code == 200
    # A stream that its client leaves, and vectors, count as well.
    clock.now += 60
    assert one.post("/v1/embeddings", json={"input": [[5] * 61]}).status_code == 200
    assert generate(one).status_code == 429


def test_requests_at_a_time(keyed: Live, new: Any) -> None:
    one = new("generate", concurrent_requests=1)
    endless = {"inputs": "x", "parameters": {"max_new_tokens": ENDLESS, "ignore_eos_token": True}}
    with one.stream("POST", "/generate_stream", json=endless) as stream:
        assert stream.status_code == 200
        chunks = stream.iter_bytes()
        next(chunks)
        answer = generate(one)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert "concurrent_requests" in answer.json()["error"]
    wait_until(lambda: generate(one).status_code == 200, "the stream's place")


def test_a_background_response_is_a_request_at_a_time(keyed: Live, new: Any) -> None:
    one = new("generate", concurrent_requests=1)
    body = {"input": "x", "background": True, "max_output_tokens": ENDLESS, "ignore_eos": True}
    made = one.post("/v1/responses", json=body).json()
    assert generate(one).status_code == 429
    keyed.http.patch("/keys/key-0", json={"limits": {"concurrent_requests": None}})
    assert one.delete(f"/v1/responses/{made['id']}").status_code == 200
    assert keyed.server.access.quotas._uses[made_id(keyed)].running == 0


def made_id(keyed: Live) -> str:
    return str(keyed.http.get("/keys/key-0").json()["id"])


def test_limits_of_adapters(keyed: Live, new: Any, archives: Callable[[int], Path]) -> None:
    size = keyed.http.get("/adapters/legal-a").json()["bytes"]

    def push(of: httpx.Client, name: str, **fields: str) -> httpx.Response:
        with archives(4).open("rb") as file:
            return of.post(
                "/adapters", data={"name": name, **fields}, files={"file": ("a.zip", file)}
            )

    for limits, name in (
        ({"max_adapters": 2}, "max_adapters"),
        ({"max_adapter_bytes": 2 * size}, "max_adapter_bytes"),
        ({"max_rank": 1}, "max_rank"),
    ):
        one = new("upload", adapters=["legal-*"], **limits)
        error = refused(push(one, "legal-new"), 403, "key_limit_exceeded")
        assert name in error["message"]
        assert one.get("/adapters/legal-new").status_code == 404
    one = new("upload", "generate", adapters=["legal-*"], max_adapters=3, max_scale=1)
    refused(push(one, "legal-new", scale="1.5"), 403, "key_limit_exceeded")
    assert push(one, "legal-new", scale="-1").status_code == 201
    refused(push(one, "legal-newer"), 403, "key_limit_exceeded")
    change = one.patch("/adapters/legal-new", json={"scale": 2})
    assert "max_scale" in refused(change, 403, "key_limit_exceeded")["message"]
    answer = generate(one, {"name": "legal-new", "scale": 1.5})
    assert answer.status_code == 403 and "max_scale" in answer.json()["error"]
    assert generate(one, {"name": "legal-new", "scale": -1}).status_code == 200
    merging = {"ids": ["legal-a", "legal-b"], "weights": [1, 2]}
    answer = one.post("/generate", json={"inputs": "x", "parameters": {"merged_adapters": merging}})
    assert answer.status_code == 403
    # What the key may not use is no more allowed as another's default.
    assert keyed.http.patch("/adapters/legal-new", json={"scale": 2}).status_code == 200
    assert generate(one, "legal-new").status_code == 403
    assert one.delete("/adapters/legal-new").status_code == 204


def test_a_refused_scale_takes_no_place(keyed: Live, new: Any) -> None:
    one = new("generate", max_scale=0.5)
    for _ in range(3):
        assert generate(one, {"name": "legal-a", "scale": 1}).status_code == 403
    assert keyed.server.client._places.taken == 0
    assert keyed.server.registry.open_leases() == 0


def test_responses_belong_to_their_key(keyed: Live, new: Any) -> None:
    mine, other = new("generate"), new("generate")
    made = mine.post("/v1/responses", json={"input": "hi", "max_output_tokens": 2}).json()
    assert mine.get(f"/v1/responses/{made['id']}").json() == made
    refused(other.get(f"/v1/responses/{made['id']}"), 404, "response_not_found")
    refused(keyed.http.get(f"/v1/responses/{made['id']}"), 404, "response_not_found")


def test_a_caller_is_a_key(keyed: Live, new: Any, monkeypatch: Any) -> None:
    """For fair shares and the prefix cache: two keys from one address are two callers."""
    assert isinstance(keyed.server.access.quotas, Quotas)
    one = new("generate", weight=2.5)
    requests: list[Request] = []
    offer = keyed.server.client._engine.offer

    def seen(command: Any) -> bool:
        if isinstance(command, Submit):
            requests.append(command.request)
        return bool(offer(command))

    monkeypatch.setattr(keyed.server.client._engine, "offer", seen)
    endless = {"inputs": "x", "parameters": {"max_new_tokens": ENDLESS, "ignore_eos_token": True}}
    with one.stream("POST", "/generate_stream", json=endless) as stream:
        chunks = stream.iter_bytes()
        next(chunks)
        places = {g._place.caller for g in keyed.server.client._generations.values()}
    assert places == {f"key {made_id(keyed)}"}
    assert [(one.caller, one.weight) for one in requests] == [(*places, 2.5)]
