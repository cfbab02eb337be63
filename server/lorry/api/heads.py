"""Refuses requests whose head is too large, before it is in memory.

httptools has no limit. It joins the pieces of a header as they arrive, so a head of hundreds of
megabytes would also keep the event loop busy for minutes, and nobody needs a key to send one. The
same holds for what stands between the pieces of a chunked body and for trailers.
"""

from __future__ import annotations

from typing import Final

from lorry.api import http10

MAX_HEAD: Final = 64 << 10
"""Bytes of the request line and all headers together, and of anything else that is not a body."""

_REFUSAL: Final = f"the request line and headers have more than {MAX_HEAD >> 10} KiB"


class BoundedProtocol(http10.Protocol):
    """uvicorn's protocol, for its `http` setting."""

    _since = 0
    """Bytes since the last head, piece of a body or message was complete."""
    _head = 0
    """Bytes of the current message's URL and headers."""

    def data_received(self, data: bytes) -> None:
        self._since += len(data)
        super().data_received(data)
        if self._since > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(_REFUSAL)

    def on_message_begin(self) -> None:
        self._head = 0
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
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._since = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._since = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer and hang up. uvicorn calls it for whatever the parser or a callback refuses."""
        super().send_400_response(_REFUSAL if self._head > MAX_HEAD else msg)

    def _count(self, more: int) -> None:
        self._head += more
        if self._head > MAX_HEAD:
            # The parser makes its own error of it.
            raise ValueError(_REFUSAL)
