"""Attacks by the place that an adapter is fetched from, and by where that sends the server."""

from __future__ import annotations

from collections.abc import Iterator

from support.attack import LONG, Attack, Call
from support.https_server import HttpsServer, redirect
from support.https_server import send as https_send


def _fetch(source: str) -> Call:
    return Call("POST", "/adapters", {"json": {"name": "fetched", "source": source}})


def sources(origin: HttpsServer) -> Iterator[Attack]:
    here = origin.port
    for source, status in (
        ("https://example.com/a.zip", 403),
        ("https://localhost/a.zip", 403),
        (f"https://127.0.0.1:{here}/good.zip", 403),
        (f"https://[::1]:{here}/good.zip", 403),
        (f"https://2130706433:{here}/good.zip", 403),
        (f"https://0x7f.1:{here}/good.zip", 403),
        (f"https://localhost.:{here + 1}/good.zip", 403),
        ("https://169.254.169.254/latest/meta-data", 403),
        ("https://metadata.google.internal/a", 403),
        ("s3://bucket/legal", 403),
        ("gs://bucket/legal", 403),
        ("org/name", 403),
        ("hf://org/name", 403),
        ("/etc", 403),
        ("/proc/self/environ", 403),
        ("file:///etc/passwd", 403),
        ("/../../etc/shadow", 403),
        (f"http://localhost:{here}/good.zip", 422),
        (f"ftp://localhost:{here}/good.zip", 422),
        ("gopher://localhost/", 422),
        ("data:application/zip;base64,UEs=", 422),
        ("", 422),
        ("../good", 422),
        (f"https://user:secret@localhost:{here}/good.zip", 422),
        (f"https://localhost:{here}/good.zip#x", 422),
        (f"https://localhost:{here}\\@example.com/a.zip", 422),
        (f"https://localhost:{here}/good.zip\r\nX-Evil: 1", 422),
        ("https://localhost:99999/good.zip", 422),
        ("https://", 422),
        (f"https://localhost:{here}/{LONG * 2}", 422),
    ):
        yield Attack(f"source: {source[:60]!r}", status, "source", _fetch(source))
    answers: dict[str, tuple[int, str, bytes]] = {
        "a page": (415, "no archive", b"<html>sign in</html>"),
        "a pickle": (415, "pickle", b"\x80\x02}q\x00."),
        "nothing": (415, "empty", b""),
        "too much": (413, "larger than", bytes(5 << 20)),
    }
    for name, (status, says, content) in answers.items():
        path = f"/{name.replace(' ', '-')}.zip"
        origin.answers[path] = lambda handler, body=content: https_send(handler, 200, body)
        yield Attack(f"source: {name}", status, says, _fetch(origin.url + path))


def redirects(origin: HttpsServer) -> Iterator[Attack]:
    for number, (to, status) in enumerate((
        ("https://example.com/good.zip", 302),
        (f"https://127.0.0.1:{origin.port}/good.zip", 301),
        ("https://localhost/good.zip", 307),
        (f"http://localhost:{origin.port}/good.zip", 308),
        (f"https://user:secret@localhost:{origin.port}/good.zip", 302),
        ("//169.254.169.254/latest", 303),
        ("https://[::ffff:169.254.169.254]/latest", 302),
        ("https://10.0.0.1/good.zip", 302),
        ("file:///etc/passwd", 302),
        ("s3://bucket/good.zip", 302),
        ("https://[broken", 302),
        ("https://2130706433/good.zip", 301),
    )):  # fmt: skip
        path = f"/away{number}.zip"
        origin.answers[path] = redirect(to, status)
        name = f"redirect: {status} to {to.replace(str(origin.port), 'PORT')}"
        yield Attack(name, 403, "source", _fetch(origin.url + path))
