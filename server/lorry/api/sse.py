"""Server-sent events: frames, and the response that sends them until the client leaves.

An error before the first token still gets its status; a later one becomes the last frame.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lorry.api.disconnect import until_gone
from lorry.api.errors import row_of
from lorry.api.runs import Run, Step, close_all, merged
from lorry.metrics import Metrics

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


def frame(data: Mapping[str, object], *, space: bool = True) -> bytes:
    """One event. TGI writes `data:{`, OpenAI `data: {`."""
    # ASCII only: some clients split lines at U+2028 and its like, as Python's str does.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"data:{' ' if space else ''}{text}\n\n".encode("ascii")


class EventStream(Response):
    """Sends `events`; `close` is awaited once, however it ends, even if it never began."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        self._events = events
        self._close = close
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._send(send))
        except (ClientDisconnect, OSError):
            logger.debug("%s: the client left its stream", scope["path"])
        finally:
            await self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for chunk in self._events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


Steps = AsyncIterator[tuple[int, Step]]
"""Every step of every run of a request, with the run's index."""


async def stream(
    request: Request,
    runs: Sequence[Run],
    *,
    frames: Callable[[Steps], AsyncIterator[bytes]],
    failed: Callable[[Exception], bytes],
    metrics: Metrics,
) -> EventStream:
    """`runs` as a response, once the first token is there. Closes them, whatever happens."""
    steps = merged(runs)

    async def close() -> None:
        await steps.aclose()
        await close_all(runs)

    try:
        first = await until_gone(request.receive, _first(steps))
    except BaseException:
        await close()
        raise

    async def body() -> AsyncGenerator[bytes]:
        try:
            async for chunk in frames(_chained(first, steps)):
                yield chunk
        except Exception as error:
            # The status is sent: whatever it was, a last frame is all that is left.
            row = row_of(error)
            metrics.refused(row.code)
            if row.status == 500:
                logger.exception("%s: the stream failed", request.url.path)
            yield failed(error)

    return EventStream(body(), close)


async def _first(steps: Steps) -> tuple[int, Step]:
    return await anext(steps)


async def _chained(first: tuple[int, Step], rest: Steps) -> AsyncGenerator[tuple[int, Step]]:
    yield first
    async for item in rest:
        yield item
