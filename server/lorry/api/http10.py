"""Ends answers of unknown length to HTTP/1.0 clients with the connection.

uvicorn sends those in chunks whatever the client speaks. An HTTP/1.0 client (`ab`, old proxies,
probes) would read the chunk sizes as part of the body.
"""

from __future__ import annotations

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, for its `http` setting."""

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and self.scope["http_version"] == "1.0":
            # Its task was created but has not begun.
            _end_with_connection(self.cycle)


def _end_with_connection(cycle: RequestResponseCycle) -> None:
    send = cycle.send
    endless = False

    async def unchunked(message: ASGISendEvent) -> None:
        nonlocal endless
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            endless = b"content-length" not in names
            if endless:
                cycle.chunked_encoding = False
        elif endless and message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = unchunked  # type: ignore[method-assign]
