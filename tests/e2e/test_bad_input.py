"""Everything that a client can get wrong: its status, its shape, and then a good request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.bad_uploads import bad_uploads
from support.server import Server, body, running

PROMPT = "How do I cook rice?"
MAX_RANK = 16
MAX_UPLOAD = 1 << 20


@pytest.fixture(scope="module")
def server(
    model: Path, archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("bad") / "home"
    flags = ["--max-lora-rank", str(MAX_RANK), "--max-upload", str(MAX_UPLOAD)]
    with running(model, home, *flags, "--served-model-name", "base") as server:
        for name in ("a", "off", "gone"):
            server.upload(name, archive("plain", 1)).raise_for_status()
        server.client.patch("/adapters/off", json={"enabled": False}).raise_for_status()
        server.client.delete("/adapters/gone").raise_for_status()
        yield server


def good_answers(server: Server) -> list[Any]:
    listing = server.client.get("/adapters").json()["adapters"]
    return [server.generate(PROMPT, "a"), server.generate(PROMPT, None), listing]


@pytest.fixture(scope="module")
def before(server: Server) -> list[Any]:
    good_answers(server)  # brings the adapter to its slot: where it is, the listing says
    return good_answers(server)


@pytest.fixture(autouse=True)
def as_before(server: Server, before: list[Any]) -> Iterator[None]:
    """After every mistake a good request answers as before, and nothing was kept of it."""
    yield
    assert good_answers(server) == before
    assert not list((server.home / "staging").iterdir())
    assert len(list((server.home / "blobs").iterdir())) == 1


@dataclass(frozen=True)
class Case:
    name: str
    status: int
    kind: str
    """TGI's `error_type`, or OpenAI's `code`."""
    content: dict[str, Any] | bytes
    says: str = ""
    headers: dict[str, str] | None = None

    def send(self, server: Server, path: str) -> httpx.Response:
        content = self.content
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        headers = {"content-type": "application/json"} if self.headers is None else self.headers
        return server.client.post(path, content=content, headers=headers)


def spec(name: str, status: int, kind: str, adapter: Any, says: str = "") -> Case:
    return Case(name, status, kind, body(PROMPT, adapter, 4), says)


def parameter(name: str, value: Any) -> Case:
    content = {"inputs": PROMPT, "parameters": {name: value}}
    return Case(f"{name} {str(value)[:20]}", 422, "validation", content, name)


def raw(name: str, status: int, content: bytes, says: str = "") -> Case:
    return Case(name, status, "validation", content, says)


GENERATE = [
    spec("unknown adapter", 404, "not_found", "nobody", "nobody"),
    spec("unknown version", 404, "not_found", "a@9", "9"),
    spec("disabled adapter", 409, "adapter_disabled", "off", "off"),
    spec("deleted adapter", 404, "not_found", "gone", "gone"),
    spec("one of two unknown", 404, "not_found", ["a", "nobody"], "nobody"),
    spec("one of two disabled", 409, "adapter_disabled", ["a", "off"], "off"),
    spec("the base as adapter", 404, "not_found", "base", "base"),
    spec("scale a string", 422, "validation", {"name": "a", "scale": "1"}, "scale"),
    spec("scale a truth", 422, "validation", {"name": "a", "scale": True}, "scale"),
    spec("scale 17", 422, "validation", {"name": "a", "scale": 17}, "16"),
    spec("scale -16.5", 422, "validation", {"name": "a", "scale": -16.5}, "16"),
    spec("nine adapters", 422, "validation", [f"x{i}" for i in range(9)], "8"),
    spec("the same twice", 422, "validation", ["a", "a"], "a"),
    spec("adapter a number", 422, "validation", 7, "adapter"),
    spec("adapter a list of lists", 422, "validation", [["a"]], "adapter"),
    spec("adapter without a name", 422, "validation", {"scale": 1}, "name"),
    spec("adapter with an unknown key", 422, "validation", {"name": "a", "weight": 1}, "weight"),
    spec("adapter empty", 422, "validation", "", "adapter"),
    spec("adapter with a path", 404, "not_found", "../a", "../a"),
    spec("version no number", 422, "validation", "a@new", "new"),
    raw("scale NaN", 400, b'{"inputs":"x","adapter":{"name":"a","scale":NaN}}', "NaN"),
    raw("scale infinite", 400, b'{"inputs":"x","adapter":{"name":"a","scale":Infinity}}'),
    raw("scale past floats", 422, b'{"inputs":"x","adapter":{"name":"a","scale":1e999}}', "scale"),
    Case("adapter and adapter_id", 422, "validation", body("x", "a", adapter_id="b"), "adapter_id"),
    Case("empty prompt", 422, "validation", {"inputs": ""}, "inputs"),
    Case("no prompt", 422, "validation", {"parameters": {}}, "inputs"),
    Case("prompt null", 422, "validation", {"inputs": None}, "inputs"),
    # Without parameters `POST /` takes a list for texts to embed.
    Case("prompt a list", 422, "validation", {"inputs": ["x"], "parameters": {}}, "inputs"),
    Case("prompt too long", 422, "validation", {"inputs": "rice " * 2000}, "512"),
    Case("prompt and answer too long", 422, "validation", body("rice " * 99, None, 500), "512"),
    Case("unknown field", 422, "validation", {"inputs": "x", "adaptor": "a"}, "adaptor"),
    Case("unknown parameter", 422, "validation", {"inputs": "x", "parameters": {"t": 1}}, "t"),
    parameter("max_new_tokens", -1),
    parameter("max_new_tokens", 0),
    parameter("max_new_tokens", 1.5),
    parameter("max_new_tokens", "8"),
    Case("max_new_tokens huge", 422, "validation", body("x", None, 10**9), "1000000000"),
    parameter("max_new_tokens", 10**30),
    parameter("temperature", -1),
    parameter("temperature", "hot"),
    parameter("top_p", 0),
    parameter("top_p", 1.5),
    parameter("top_k", -3),
    parameter("typical_p", 2),
    parameter("min_p", -0.1),
    parameter("repetition_penalty", 0),
    parameter("frequency_penalty", 99),
    parameter("seed", -(2**70)),
    parameter("seed", 1.5),
    parameter("stop", 5),
    parameter("stop", ["x"] * 99),
    parameter("best_of", 0),
    parameter("best_of", 1000),
    parameter("top_n_tokens", 10**6),
    parameter("truncate", 0),
    parameter("do_sample", "yes"),
    parameter("watermark", True),
    parameter("merged_adapters", {"ids": ["a"]}),
    parameter("adapter_source", "hub"),
    parameter("grammar", {"type": "regex", "value": "("}),
    parameter("response_format", {"type": "brand_new"}),
    raw("broken JSON", 400, b'{"inputs": "x"', "JSON"),
    raw("no body", 400, b"", "JSON"),
    raw("not UTF-8", 400, b'{"inputs": "\xff\xfe"}', "UTF-8"),
    raw("half a surrogate pair", 400, b'{"inputs": "\\ud800"}', "surrogate"),
    raw("nested too deeply", 400, b"[" * 100_000, ""),
    raw("a list", 422, b"[1, 2]", "object"),
    raw("temperature NaN", 400, b'{"inputs":"x","parameters":{"temperature":NaN}}', "NaN"),
    raw("larger than any prompt", 413, b'{"inputs":"' + b"x" * (9 << 20) + b'"}', ""),
    Case("form content", 415, "validation", b"inputs=x", "application/json",
         {"content-type": "application/x-www-form-urlencoded"}),
    Case("no content type", 415, "validation", b'{"inputs":"x"}', "application/json", {}),
]  # fmt: skip


def by_name(case: Any) -> str:
    return case.name if isinstance(case, Case) else str(case)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
@pytest.mark.parametrize("case", GENERATE, ids=by_name)
def test_generate(server: Server, path: str, case: Case) -> None:
    answer = case.send(server, path)
    assert answer.status_code == case.status, answer.text
    error = answer.json()
    assert set(error) == {"error", "error_type"}
    assert error["error_type"] == case.kind
    assert case.says.lower() in error["error"].lower(), error
    assert "Traceback" not in answer.text


def openai(name: str, status: int, kind: str, says: str = "", /, **fields: Any) -> Case:
    return Case(name, status, kind, fields, says)


OPENAI = [
    openai("unknown model", 404, "model_not_found", "nobody", model="nobody"),
    openai("disabled model", 409, "adapter_disabled", "off", model="off"),
    openai("deleted model", 404, "model_not_found", "gone", model="gone"),
    openai("unknown adapter", 404, "unknown_adapter", "nobody", adapter="nobody"),
    openai("scale 17", 400, "invalid_scale", "16", adapter={"name": "a", "scale": 17}),
    openai("nine adapters", 400, "invalid_selection", "8", adapter=["a"] * 9),
    openai("max_tokens -2", 400, "invalid_request", "max_tokens", max_tokens=-2),
    openai("temperature -1", 400, "invalid_request", "temperature", temperature=-1),
    openai("n 0", 400, "invalid_request", "n", n=0),
    openai("unknown sampler", 400, "invalid_request", "new_penalty", new_penalty=1),
]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("case", OPENAI, ids=by_name)
def test_openai(server: Server, path: str, case: Case) -> None:
    assert isinstance(case.content, dict)
    prompt: dict[str, Any] = {"prompt": PROMPT}
    if "chat" in path:
        prompt = {"messages": [{"role": "user", "content": PROMPT}]}
    answer = server.client.post(path, json={"model": "base", **prompt, **case.content})
    check_openai(answer, case.status, case.kind, case.says)


def check_openai(answer: httpx.Response, status: int, code: str | None, says: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) - {"problems", "routes"} == {"message", "type", "param", "code"}
    if code is not None:
        assert error["code"] == code
    told = " ".join([error["message"], *error.get("problems", [])])
    assert says.lower() in told.lower(), error
    if status == 422 or code == "invalid_request":
        assert error["problems"]
    assert "Traceback" not in answer.text


UPLOADS = [
    "not an archive", "nothing at all", "truncated zip", "truncated tar", "climbs out",
    "absolute path", "symbolic link", "hard link", "two configs", "no config", "no weights",
    "pickle only", "config is no JSON", "config is a list", "header length lies",
    "header is no JSON", "header points beyond the end", "header overlaps itself",
    "header claims a larger shape", "header has a strange dtype", "weights truncated",
    "wrong shape", "not a number", "infinite", "integers", "an A without its B",
    "a layer that is not there", "another model's names", "matches no module",
    "rank over the limit", "rank not the tensors'", "rank is text", "DoRA", "bias",
    "whole modules", "another method", "tensors of another method", "unknown meaningful key",
]  # fmt: skip


@pytest.mark.parametrize("name", UPLOADS)
def test_uploads(server: Server, name: str, peft_adapter: Callable[..., Path]) -> None:
    cases = bad_uploads(peft_adapter("llama", "plain", seed=2), max_rank=MAX_RANK)
    assert set(cases) == set(UPLOADS)
    bad = cases[name]
    answer = server.client.post(
        "/adapters", data={"name": "bad"}, files={"file": (bad.filename, bad.content)}
    )
    check_openai(answer, bad.status, None, bad.says)
    assert server.client.get("/adapters/bad").status_code == 404


@pytest.mark.parametrize(
    "name", ["a//b", "../a", "", ".hidden", "-a", "base", "x" * 129, "a@1", "ä", "a b", "a\0b"]
)
def test_names(server: Server, name: str, archive: Callable[..., Path]) -> None:
    answer = server.upload(name, archive("small", 1))
    check_openai(answer, 422, None, "name")


@pytest.mark.parametrize(
    ("field", "value"),
    [("scale", "17"), ("scale", "nan"), ("scale", "inf"), ("scale", "x"), ("enabled", "perhaps")],
)
def test_fields_of_an_upload(
    server: Server, field: str, value: str, archive: Callable[..., Path]
) -> None:
    check_openai(server.upload("b", archive("small", 1), **{field: value}), 422, None, field)


def test_other_content_under_the_same_name(server: Server, archive: Callable[..., Path]) -> None:
    assert server.upload("a", archive("plain", 1)).status_code == 200
    check_openai(server.upload("a", archive("small", 1)), 409, "adapter_conflict", "replace")


def test_upload_over_the_limit(server: Server) -> None:
    for content in (b"x" * (MAX_UPLOAD * 2), b"x" * (MAX_UPLOAD * 40)):
        answer = server.client.post("/adapters", data={"name": "b"}, files={"file": content})
        check_openai(answer, 413, "upload_too_large", str(MAX_UPLOAD))


def test_an_archive_that_unfolds_over_the_limit(server: Server, tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter_config.json", "{}")
        archive.writestr("adapter_model.safetensors", bytes(50 * MAX_UPLOAD))
    assert path.stat().st_size < MAX_UPLOAD
    check_openai(server.upload("b", path), 413, "upload_too_large", "")


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"content-type": "text/plain"}, b"hello", 415),
        ({}, b"hello", 415),
        ({"content-type": "multipart/form-data"}, b"hello", 400),
        ({"content-type": "multipart/form-data; boundary=x"}, b"hello", 400),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x\r\n\r\nabc", 400),
        ({"content-type": "application/json"}, b'{"name": "b"}', 422),
        ({"content-type": "application/json"}, b'{"name": "b", "source": "/etc"}', 403),
        ({"content-type": "application/json"}, b'{"name": "b", "source": "org/repo"}', 403),
    ],
)
def test_forms(server: Server, headers: dict[str, str], content: bytes, status: int) -> None:
    answer = server.client.post("/adapters", content=content, headers=headers)
    check_openai(answer, status, None, "")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"scale": 17}, 422),
        ({"scale": "1"}, 422),
        ({"enabled": "no"}, 422),
        ({"version": 9}, 404),
        ({"brand_new": 1}, 422),
    ],
)
def test_changes(server: Server, change: dict[str, Any], status: int) -> None:
    check_openai(server.client.patch("/adapters/a", json=change), status, None, "")


def test_changes_of_nobody(server: Server) -> None:
    answer = server.client.patch("/adapters/nobody", json={"scale": 1.0})
    check_openai(answer, 404, "unknown_adapter", "nobody")


def test_a_digest_that_is_no_longer_current(server: Server, archive: Callable[..., Path]) -> None:
    stale = {"If-Match": '"sha256:' + "0" * 64 + '"'}
    with archive("small", 1).open("rb") as file:
        answer = server.client.put("/adapters/a", files={"file": file}, headers=stale)
    check_openai(answer, 412, "digest_mismatch", "")
    answer = server.client.patch("/adapters/a", json={"scale": 2.0}, headers=stale)
    check_openai(answer, 412, "digest_mismatch", "")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/adapters/nobody", 404),
        ("DELETE", "/adapters/nobody", 404),
        ("GET", "/adapters/nobody/content", 404),
        ("DELETE", "/adapters/a?version=7", 404),
        ("DELETE", "/adapters/a?version=x", 422),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/no/such/route", 404),
        ("GET", "/adapters/%2e%2e%2fetc", 404),
        ("DELETE", "/v1/models", 405),
        ("PUT", "/adapters", 405),
    ],
)
def test_routes(server: Server, method: str, path: str, status: int) -> None:
    check_openai(server.client.request(method, path), status, None, "")
