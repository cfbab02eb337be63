"""Attacks on a server, each of them one row. Uploads that are wrong are in `bad_uploads`; those
that are to cost the server its time or memory in `hostile_archives`, `hostile_files` and
`hostile_requests`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.attack import KEY, LONG, Attack, Call, Raw
from support.bad_uploads import bad_uploads
from support.https_server import HttpsServer
from support.source_attacks import redirects, sources

_JSON = {"content-type": "application/json"}


def attacks(adapter: Path, origin: HttpsServer, max_rank: int) -> list[Attack]:
    """All of them. `adapter`: the folder of a good one; `origin`: an https server that the attacked
    one may fetch from."""
    rows = [
        *_uploads(adapter, max_rank),
        *_forms(),
        *_requests(),
        *_names(),
        *_versions(),
        *_key_bodies(),
        *_keys(),
        *_origins(),
        *_hosts(),
        *_heads(),
        *sources(origin),
        *redirects(origin),
    ]
    assert len({row.name for row in rows}) == len(rows)
    return rows


def _uploads(adapter: Path, max_rank: int) -> Iterator[Attack]:
    for name, bad in bad_uploads(adapter, max_rank=max_rank).items():
        files = {"file": (bad.filename, bad.content)}
        call = Call("POST", "/adapters", {"data": {"name": "bad"}, "files": files})
        yield Attack(f"upload: {name}", bad.status, bad.says, call)


def _forms() -> Iterator[Attack]:
    form = {"content-type": "multipart/form-data; boundary=x"}

    def part(name: str, content: str, more: str = "") -> str:
        return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{content}\r\n'

    named = part("name", "bad")
    file = part("file", "PK", '; filename="a.zip"')
    rows: list[tuple[str, int, str, str]] = [
        ("without a file", 422, "file", named + "--x--"),
        ("without a name", 422, "name", file + "--x--"),
        ("with two names", 422, "name", named + named + file + "--x--"),
        ("with two files", 422, "file", named + file + file + "--x--"),
        ("a file as name", 422, "name", part("name", "bad", '; filename="n"') + file + "--x--"),
        ("an unknown field", 422, "pickle", named + part("pickle", "1") + file + "--x--"),
        ("a scale of NaN", 422, "scale", named + part("scale", "nan") + file + "--x--"),
        ("a scale of 1e400", 422, "scale", named + part("scale", "1e400") + file + "--x--"),
        ("enabled: maybe", 422, "enabled", named + part("enabled", "maybe") + file + "--x--"),
        ("a description of 11,000", 422, "description",
         named + part("description", "d" * 11_000) + file + "--x--"),
        ("without its end", 400, "", named + file),
        ("without a boundary in it", 400, "", "hello"),
        ("a part without a name", 422, "unknown field",
         "--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--"),
    ]  # fmt: skip
    for name, status, says, content in rows:
        more = {"headers": form, "content": content.encode()}
        yield Attack(f"form: {name}", status, says, Call("POST", "/adapters", more))


def _requests() -> Iterator[Attack]:
    def generate(name: str, status: int, says: str, **body: Any) -> Attack:
        call = Call("POST", "/generate", {"json": {"inputs": "x", **body}})
        return Attack(f"request: {name}", status, says, call)

    def raw(name: str, status: int, says: str, content: bytes) -> Attack:
        call = Call("POST", "/generate", {"content": content, "headers": _JSON})
        return Attack(f"request: {name}", status, says, call)

    def grammar(name: str, says: str, kind: str, value: Any) -> Attack:
        return generate(name, 422, says, parameters={"grammar": {"type": kind, "value": value}})

    def openai(name: str, status: int, says: str, path: str, **body: Any) -> Attack:
        call = Call("POST", path, {"json": {"model": "good", **body}})
        return Attack(f"request: {name}", status, says, call)

    def chat(name: str, says: str, content: Any = "x", role: str = "user", **more: Any) -> Attack:
        messages = [{"role": role, "content": content}]
        return openai(name, 400, says, "/v1/chat/completions", messages=messages, **more)

    yield generate("an adapter that is a path", 404, "../../etc/passwd", adapter="../../etc/passwd")
    yield generate("an adapter that is a URL", 404, "https", adapter="https://evil.example/a.zip")
    yield generate("an adapter of 7,000 characters", 404, "", adapter=LONG)
    yield generate("an adapter with NUL", 404, "", adapter="good\0")
    yield generate("nine adapters", 422, "8", adapter=["good"] * 9)
    yield generate("a scale of a million", 422, "16", adapter={"name": "good", "scale": 1e6})
    yield generate("lists of lists", 422, "adapter", adapter=[[["good"]]])
    yield generate("no object as adapter", 422, "adapter", adapter=1.5)
    yield generate("a billion tokens", 422, "", parameters={"max_new_tokens": 10**9})
    yield generate("a thousand answers", 422, "best_of", parameters={"best_of": 1000})
    yield generate("a seed beyond 64 bits", 422, "seed", parameters={"seed": 2**80})
    yield generate("a prompt beyond the model", 422, "512", inputs="rice " * 5000)
    source = {"adapter_id": "good", "adapter_source": "s3"}
    yield generate("adapter_source", 422, "adapter_source", parameters=source)
    yield grammar("a regex that backtracks", "grammar", "regex", "(a|a)*" * 999 + "(")
    yield grammar("a schema of nothing", "", "json", {"$ref": "#/$defs/no"})
    yield grammar("a schema from elsewhere", "", "json", {"$ref": "http://169.254.169.254/"})
    yield raw("half a surrogate pair", 400, "surrogate", b'{"inputs": "\\ud800"}')
    yield raw("no UTF-8", 400, "utf-8", b'{"inputs": "\xff"}')
    yield raw("NaN", 400, "nan", b'{"inputs": "x", "parameters": {"temperature": NaN}}')
    yield raw("100,000 brackets", 400, "nested", b"[" * 100_000)
    yield raw("9 MiB", 413, "", b'{"inputs": "' + b"x" * (9 << 20) + b'"}')
    yield chat("a template of its own", "chat_template", chat_template="{{ ''.__class__ }}")
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    yield chat("an image from a URL", "image", [image])
    yield chat("a tool that runs code", "tools", tools=[{"type": "code_interpreter"}])
    yield chat("a role of its own", "role", role="root")
    yield openai("a stored response that is a path", 400, "", "/v1/responses", input="x",
                 previous_response_id="../../etc/passwd")  # fmt: skip
    path = "/v1/completions"
    yield openai("a million logprobs", 400, "logprobs", path, prompt="x", logprobs=10**6)
    yield openai("tokens that are no tokens", 400, "", path, prompt=[-1, 10**9])
    numbers = {"json": {"tokens": [-5, 2**40]}}
    call = Call("POST", "/detokenize", numbers)
    yield Attack("request: tokens to text that are none", 400, "token", call)


def _names() -> Iterator[Attack]:
    paths = [
        ("GET", "/adapters/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/adapters/%2e%2e/%2e%2e/etc", 404),
        ("GET", "/adapters/good%00", 404),
        ("GET", "/adapters/good%0d%0aX-Evil:1", 404),
        ("GET", f"/adapters/{LONG}", 404),
        ("GET", "/adapters/good/content?version=-1", 404),
        ("GET", "/adapters/good/content?version=99999999999999999999999", 404),
        ("GET", "/adapters/good@9/content", 422),
        ("DELETE", "/adapters/good?version=1e3", 422),
        ("DELETE", "/adapters/*", 404),
        ("GET", "/v1/models/..%2fgood", 404),
        ("GET", "/docs/../../etc/passwd", 404),
        ("GET", "/v1/responses/..%2f..%2fetc", 404),
        ("GET", "/keys/..%2fadmin", 404),
        ("GET", "/audit?limit=100000000", 422),
        ("GET", "/audit?before=-1", 422),
        ("TRACE", "/adapters", 405),
        ("CONNECT", "/adapters", 405),
        ("POST", "/adapters/good", 405),
    ]
    for method, path, status in paths:
        yield Attack(f"path: {method} {path[:60]}", status, "", Call(method, path))
    for name in ("../a", ".a", "-a", "a b", "a\0b", "a\nb", "ä", "a@1", "base", LONG, "/a",
                 "a//b", "a/content", "CON\\a"):  # fmt: skip
        files = {"file": ("a.zip", b"PK")}
        call = Call("POST", "/adapters", {"data": {"name": name}, "files": files})
        # A file comes first in no message: the name is looked at before it is unpacked.
        yield Attack(f"name: {name[:20]!r}", 422, "name", call)


def _versions() -> Iterator[Attack]:
    rows: list[tuple[str, int, str, dict[str, Any]]] = [
        ("a version that is not there", 404, "9", {"version": 9}),
        ("a negative version", 404, "-1", {"version": -1}),
        ("a version of 400 digits", 404, "", {"version": 10**399}),
        ("a split of one unknown version", 404, "9", {"split": {"9": 1}}),
        ("a split with weight 0", 422, "weight", {"split": {"1": 0}}),
        ("a split with a negative weight", 422, "weight", {"split": {"1": -5}}),
        ("a split with a huge weight", 422, "weight", {"split": {"1": 10**12}}),
        ("a split of half a version", 422, "split", {"split": {"1.5": 1}}),
        ("a split of 17 versions", 422, "16", {"split": {str(n): 1 for n in range(17)}}),
        ("an alias with another's name", 409, "taken", {"aliases": {"good": 1}}),
        ("an alias of the base's name", 422, "name", {"aliases": {"base": 1}}),
        ("an alias of another adapter's", 422, "alias", {"aliases": {"other@prod": 1}}),
        ("an alias that is a version", 422, "alias", {"aliases": {"good@7": 1}}),
        ("an alias with a path", 422, "", {"aliases": {"../prod": 1}}),
        ("101 aliases", 422, "100", {"aliases": {f"alias{n}": 1 for n in range(101)}}),
        ("an alias that means nothing", 422, "", {"aliases": {"prod": {}}}),
        ("no alias to remove", 404, "prod", {"aliases": {"prod": None}}),
        ("keep one version", 422, "keep_versions", {"keep_versions": 1}),
        ("keep -3 days", 422, "keep_days", {"keep_days": -3}),
        ("a scale of text", 422, "scale", {"scale": "1; DROP TABLE adapters"}),
        ("an unknown field", 422, "owner", {"owner": "me"}),
        ("a digest", 422, "digest", {"digest": "sha256:" + "0" * 64}),
    ]
    for name, status, says, body in rows:
        call = Call("PATCH", "/adapters/good", {"json": body})
        yield Attack(f"change: {name}", status, says, call)
    stale = {"json": {"scale": 2.0}, "headers": {"if-match": '"sha256:0"'}}
    yield Attack("change: a stale digest", 412, "digest", Call("PATCH", "/adapters/good", stale))
    broken = {"json": {"digest": "../../etc"}}
    yield Attack("change: recover a path", 404, "digest", Call("POST", "/unclaimed", broken))


def _key_bodies() -> Iterator[Attack]:
    one: dict[str, Any] = {"name": "team", "scopes": ["generate"]}
    rows: list[tuple[str, int, str, Any]] = [
        ("without scopes", 422, "scopes", {"name": "team"}),
        ("no scope at all", 422, "scopes", {**one, "scopes": []}),
        ("an unknown scope", 422, "scopes", {**one, "scopes": ["root"]}),
        ("a name with a path", 422, "name", {**one, "name": "../team"}),
        ("an empty name", 422, "name", {**one, "name": ""}),
        ("a name of 7,000", 422, "name", {**one, "name": LONG}),
        ("the settings' own name", 409, "another name", {**one, "name": "LORRY_API_KEY"}),
        ("a text of its own", 422, "key", {**one, "key": "lorry-000000000000-weak"}),
        ("an id of its own", 422, "id", {**one, "id": "000000000000"}),
        ("a pattern in the middle", 422, "adapters", {**one, "adapters": ["a*b"]}),
        ("a pattern that is a regex", 422, "adapters", {**one, "adapters": ["(a+)+$"]}),
        ("1,001 patterns", 422, "adapters", {**one, "adapters": ["a"] * 1001}),
        ("admin of some adapters", 422, "admin",
         {**one, "scopes": ["admin"], "adapters": ["a-*"]}),
        ("a limit below zero", 422, "requests_per_minute",
         {**one, "limits": {"requests_per_minute": -1}}),
        ("a limit beyond numbers", 422, "tokens_per_minute",
         {**one, "limits": {"tokens_per_minute": 10**40}}),
        ("an unknown limit", 422, "dollars", {**one, "limits": {"dollars": 5}}),
        ("a weight of infinity", 422, "weight", {**one, "limits": {"weight": 1e308}}),
        ("a description with NUL", 422, "description", {**one, "description": "a\0b"}),
        ("a description of 11,000", 422, "description", {**one, "description": "d" * 11_000}),
        ("a list", 422, "object", [one]),
    ]  # fmt: skip
    for name, status, says, body in rows:
        yield Attack(f"key: {name}", status, says, Call("POST", "/keys", {"json": body}))
    yield Attack(
        "key: rotate nobody's", 404, "nobody", Call("POST", "/keys/nobody/rotate", {"json": {}})
    )
    yield Attack("key: revoke nobody's", 404, "nobody", Call("DELETE", "/keys/nobody"))
    yield Attack(
        "key: revoke the settings'", 404, "LORRY_API_KEY", Call("DELETE", "/keys/LORRY_API_KEY")
    )


def _keys() -> Iterator[Attack]:
    rows: list[tuple[str, dict[str, str]]] = [
        ("none", {}),
        ("an empty one", {"x-api-key": ""}),
        ("a part of it", {"x-api-key": KEY[:-1]}),
        ("more than it", {"x-api-key": KEY + "x"}),
        ("another case", {"x-api-key": KEY.upper()}),
        ("as a password", {"authorization": f"Basic {KEY}"}),
        ("no scheme", {"authorization": KEY}),
        ("two words", {"authorization": f"Bearer {KEY} {KEY}"}),
        ("an id alone", {"x-api-key": "lorry-000000000000-"}),
        ("an unknown one", {"x-api-key": "lorry-000000000000-" + "A" * 43}),
        ("its digest", {"x-api-key": "sha256:" + "0" * 64}),
        ("60,000 characters", {"x-api-key": "x" * 60_000}),
        ("a wildcard", {"x-api-key": "*"}),
        ("a cookie", {"cookie": f"x-api-key={KEY}"}),
        ("SQL", {"x-api-key": "' OR 1=1 --"}),
    ]
    for name, headers in rows:
        head = "".join(f"{key}: {value}\n" for key, value in headers.items())
        text = f"GET /adapters HTTP/1.1\nHost: HOST\nConnection: close\n{head}\n"
        # The value itself, not a name that is filled in.
        yield Attack(f"key form: {name}", 401, "key", Raw(text))
    text = "GET /adapters?x-api-key=KEY&api_key=KEY HTTP/1.1\nHost: HOST\nConnection: close\n\n"
    yield Attack("key form: in the URL", 401, "key", Raw(text))


def _post(head: str, path: str = "/adapters/good", method: str = "DELETE") -> Raw:
    return Raw(f"{method} {path} HTTP/1.1\nx-api-key: KEY\nConnection: close\n{head}\n")


def _origins() -> Iterator[Attack]:
    for name, head in {
        "another site": "Origin: https://evil.example\n",
        "null": "Origin: null\n",
        "a file": "Origin: file://\n",
        "an extension": "Origin: chrome-extension://abcdef\n",
        "another port": "Origin: http://127.0.0.1:1\n",
        "our name within another": "Origin: http://HOST.evil.example\n",
        "our name as its user": "Origin: http://HOST@evil.example\n",
        "empty": "Origin: \n",
        "a shell's command": "Origin: https://x.example/$(rm)\n",
        "own, said to be foreign": "Origin: http://HOST\nSec-Fetch-Site: cross-site\n",
        "a page of the same site": "Origin: http://a.localhost\nSec-Fetch-Site: same-site\n",
        "no name, a foreign site": "Sec-Fetch-Site: cross-site\n",
    }.items():
        yield Attack(f"origin: {name}", 403, "cross_site_request", _post(f"Host: HOST\n{head}"))
    for method, path in (
        ("POST", "/keys"),
        ("POST", "/v1/load_lora_adapter"),
        ("PATCH", "/adapters/good"),
        ("POST", "/unclaimed"),
        ("PUT", "/adapters/good"),
    ):
        head = "Host: HOST\nOrigin: https://evil.example\nContent-Length: 0\n"
        name = f"origin: {method} {path}"
        yield Attack(name, 403, "cross_site_request", _post(head, path, method))
    asked = "Host: HOST\nOrigin: https://evil.example\nAccess-Control-Request-Method: DELETE\n"
    yield Attack("origin: may I?", 403, "cross_site_request", _post(asked, method="OPTIONS"))


def _hosts() -> Iterator[Attack]:
    for name, host, status, says in (
        ("another", "evil.example", 403, "foreign_host"),
        ("one that begins as ours", "localhost.evil.example", 403, "foreign_host"),
        ("one that ends as ours", "evillocalhost", 403, "foreign_host"),
        ("a public address", "93.184.216.34", 403, "foreign_host"),
        ("a private address", "192.168.0.1", 403, "foreign_host"),
        ("an address as a number", "2130706434", 403, "foreign_host"),
        ("an IPv6 address", "[2001:db8::1]", 403, "foreign_host"),
        ("a rebinding service", "127.0.0.1.nip.io", 403, "foreign_host"),
        ("a user before it", "a@localhost", 400, "malformed_host"),
        ("a path behind it", "localhost/x", 400, "malformed_host"),
        ("a space in it", "local host", 400, "malformed_host"),
        ("two in one", "localhost, evil.example", 400, "malformed_host"),
        ("a bracket alone", "[::1", 400, "malformed_host"),
        ("a port that is none", "localhost:http", 400, "malformed_host"),
        ("7,000 characters", LONG, 403, "foreign_host"),
    ):
        yield Attack(f"host: {name}", status, says, _post(f"Host: {host}\n"))
    twice = "Host: localhost\nHost: evil.example\n"
    yield Attack("host: two of them", 400, "malformed_host", _post(twice))
    forwarded = "Host: evil.example\nX-Forwarded-Host: localhost\nForwarded: host=localhost\n"
    yield Attack("host: forwarded as ours", 403, "foreign_host", _post(forwarded))
    yield Attack("host: in the request line", 403, "foreign_host",
                 _post("Host: evil.example\n", "http://localhost/adapters/good"))  # fmt: skip


def _heads() -> Iterator[Attack]:
    """Heads that disagree with their bodies."""
    head = "POST /generate HTTP/1.1\nHost: HOST\nx-api-key: KEY\nConnection: close\n"
    typed = f"{head}Content-Type: application/json\n"
    for name, status, text in (
        ("two lengths", 400, f"{typed}Content-Length: 5\nContent-Length: 6\n\nhello"),
        ("a negative length", 400, f"{typed}Content-Length: -1\n\n"),
        ("a length that is text", 400, f"{typed}Content-Length: five\n\nhello"),
        ("a length of 40 digits", 400, f"{typed}Content-Length: {'9' * 40}\n\nhello"),
        ("a chunk of no size", 400, f"{typed}Transfer-Encoding: chunked\n\nzz\nhello\n"),
        ("chunks and a length", 400,
         f"{typed}Transfer-Encoding: chunked\nContent-Length: 3\n\n3\n{{}}x\n0\n\n"),
        ("an unknown coding", 400, f"{typed}Transfer-Encoding: brotli\n\nhello"),
        ("a header without a name", 400, f"{head}: x\n\n"),
        ("a header on two lines", 400, f"{head}X-A: a\n b\n\n"),
        ("100,000 characters of header", 400, f"{head}X-A: {'a' * 100_000}\n\n"),
        ("100,000 characters of URL", 400, f"GET /{'a' * 100_000} HTTP/1.1\nHost: HOST\n\n"),
        ("20,000 headers", 400, head + "a: b\n" * 20_000 + "\n"),
        ("4 MiB of header", 400, f"{head}X-A: {'a' * (4 << 20)}"),
        ("4 MiB of URL", 400, f"GET /{'a' * (4 << 20)}"),
        ("4 MiB of a chunk's extension", 400,
         f"{typed}Transfer-Encoding: chunked\n\n1;{'a' * (4 << 20)}"),
        ("4 MiB of trailers", 400,
         f"{typed}Transfer-Encoding: chunked\n\n0\nX-A: {'a' * (4 << 20)}"),
        ("a NUL in a header", 400, f"{head}X-A: a\0b\n\n"),
        ("a compressed body", 415, f"{typed}Content-Encoding: gzip\nContent-Length: 2\n\n{{}}"),
        ("no type", 415, f"{head}Content-Length: 2\n\n{{}}"),
        ("a form's type", 415,
         f"{head}Content-Type: application/x-www-form-urlencoded\nContent-Length: 1\n\na"),
    ):  # fmt: skip
        yield Attack(f"head: {name}", status, "", Raw(text))
