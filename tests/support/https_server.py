"""A real https server on this machine, which answers as a test says."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class HttpsServer:
    """Serves `answers` by path, and otherwise the files below `root`."""

    port: int
    root: Path
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path with query, and headers in lower case, of each request."""

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"


def redirect(location: str, status: int = 302) -> Answer:
    return lambda handler: send(handler, status, b"", Location=location)


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


class Slow:
    """Sends a file's first half, and the rest when it may."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.go_on = threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        half = len(self._body) // 2
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self._body)))
        handler.end_headers()
        handler.wfile.write(self._body[:half])
        self.go_on.wait()
        handler.wfile.write(self._body[half:])


@contextmanager
def serve_https(root: Path, authority: trustme.CA) -> Iterator[HttpsServer]:
    """A server with a certificate for localhost and 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            served.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            path = self.path.partition("?")[0]
            if path in served.answers:
                try:
                    served.answers[path](self)
                except OSError:
                    self.close_connection = True  # the client has left
                return
            file = served.root / path.lstrip("/")
            if file.is_file():
                send(self, 200, file.read_bytes())
            else:
                send(self, 404, b"no such file")

        def log_message(self, format: str, *args: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    web.socket = context.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
    served = HttpsServer(web.server_address[1], root)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        web.shutdown()
        thread.join()
        web.server_close()
