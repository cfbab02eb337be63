"""Server-sent events: frames, and the response that sends them until the client leaves.

An error before the first token still gets its status; a later one becomes the last frame.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lorry.api.disconnect import until_gone
from lorry.api.errors import count, row_of
from lorry.api.runs import MergedSteps, Run, Step, close_all
from lorry.metrics import Metrics

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


# ASCII only: some clients split lines at U+2028 and similar, as Python's str does.
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def frame(data: Mapping[str, object], *, space: bool = True, event: str | None = None) -> bytes:
    """Encode one event, with a name if given. TGI writes `data:{`, OpenAI `data: {`."""
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data:{' ' if space else ''}{_ENCODER.encode(data)}\n\n".encode("ascii")


class Frames(Protocol):
    """Makes the frames of one answer's stream; there is one per request."""

    def step(self, index: int, step: Step) -> bytes:
        """Return the frames, if any, for this step of the `index`-th run."""
        ...

    def end(self) -> bytes:
        """Return the frames after the last step."""
        ...

    def failed(self, error: Exception) -> bytes:
        """Return the last frame of a stream that fails."""
        ...


class EventStream(Response):
    """Sends the frames of the steps: of `first`, then of those still to come.

    Closes the runs once, however it ends, even if it never began.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: tuple[int, Step],
        steps: MergedSteps,
        frames: Frames,
        *,
        close: Callable[[], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._first = first
        self._steps = steps
        self._frames = frames
        self._close = close
        self._metrics = metrics
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._send(scope["path"], send))
        except (ClientDisconnect, OSError):
            logger.debug("%s: the client left its stream", scope["path"])
        finally:
            await self._close()

    async def _send(self, path: str, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        step: tuple[int, Step] | None = self._first
        more = True
        while more:
            try:
                if step is None:
                    step = await self._steps.next()
                chunk = self._frames.step(*step)
                more = not self._steps.over
                if not more:
                    chunk += self._frames.end()
                step = None
            except Exception as error:
                # The status is already sent, so a last frame is all that is possible.
                count(error, self._metrics)
                if row_of(error).status == 500:
                    logger.exception("%s: the stream failed", path)
                chunk, more = self._frames.failed(error), False
            if chunk or not more:
                await send({"type": "http.response.body", "body": chunk, "more_body": more})


async def stream(
    request: Request, runs: Sequence[Run], frames: Frames, metrics: Metrics
) -> EventStream:
    """Return `runs` as a response after the first token. The runs are closed in any case."""
    steps = MergedSteps(runs)

    async def close() -> None:
        await steps.close()
        await close_all(runs)

    try:
        first = await until_gone(request.receive, steps.next())
    except BaseException:
        await close()
        raise
    return EventStream(first, steps, frames, close=close, metrics=metrics)
