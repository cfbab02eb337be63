"""Refuses requests whose head is too large, before it is in memory, or takes too long.

httptools has no limit. It joins the pieces of a header as they arrive, so a head of hundreds of
megabytes would also keep the event loop busy for minutes, and nobody needs a key to send one. The
same holds for what stands between the pieces of a chunked body and for trailers.

uvicorn gives a connection time limits only after its first answer. One that sends nothing, or a
head byte by byte, would stay for ever, and a thousand of them would use up the server's files.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from lorry.api import http10

MAX_HEAD: Final = 64 << 10
"""Bytes of the request line and all headers together, and of anything else that is not a body."""

HEAD_PATIENCE: Final = 60.0
"""Seconds for a whole head, from the connection or from its first byte behind another request; and
for the rest of a body that was answered before it arrived."""

_REFUSAL: Final = f"the request line and headers have more than {MAX_HEAD >> 10} KiB"


class BoundedProtocol(http10.Protocol):
    """uvicorn's protocol, for its `http` setting."""

    _since = 0
    """Bytes since the last head, piece of a body or message was complete."""
    _head = 0
    """Bytes of the current message's URL and headers."""
    _begun = False
    """True within a head."""
    _timer: asyncio.TimerHandle | None = None
    """Ends the wait for a head."""

    def __init__(self, *args: Any, patience: float = HEAD_PATIENCE, **kwargs: Any) -> None:
        """`patience`: seconds for a head."""
        super().__init__(*args, **kwargs)
        self._patience = patience

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._since += len(data)
        super().data_received(data)
        if self._since > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(_REFUSAL)
        if self._begun or not self._answers():
            # These bytes ended uvicorn's own wait for the next request. They may also be the rest
            # of a body that was answered already.
            self._await_head()

    def on_message_begin(self) -> None:
        self._head = 0
        self._begun = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # With ": " and the end of the line.
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._since = 0
        self._begun = False
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._since = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._since = 0
        self._stop_timer()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer and hang up. uvicorn calls it for whatever the parser or a callback refuses."""
        super().send_400_response(_REFUSAL if self._head > MAX_HEAD else msg)

    def _answers(self) -> bool:
        """Return whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self._patience, self._too_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self._answers():
            # A pipelined head: hanging up would cut the answer before it.
            self._await_head()
        elif not self.transport.is_closing():
            if self._begun:
                text = f"the request line and headers took more than {self._patience:g} s".encode()
                self.transport.write(
                    STATUS_LINE[408]
                    + b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
                    b"connection: close\r\n\r\n%s" % (len(text), text)
                )
            self.transport.close()

    def _count(self, more: int) -> None:
        self._head += more
        if self._head > MAX_HEAD:
            # The parser makes its own error of it.
            raise ValueError(_REFUSAL)
