"""A connection to PostgreSQL that is given up when the server is silent.

PostgreSQL enforces `statement_timeout` itself, so a server that is frozen (stopped, swapped out, a
paused virtual machine) never does, and its kernel goes on answering TCP. Only the client can end
such a wait, and libpq has no limit for it after the connection is made.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Final, TypeVar

from psycopg import Connection, OperationalError
from psycopg.errors import ConnectionTimeout

SILENCE: Final = 15.0
"""Seconds without a byte from the server after which it counts as lost. Longer than the time limits
that the server itself enforces."""

Answer = TypeVar("Answer")


class ServerSilent(OperationalError):
    """The server did not answer. Whether it did what it was asked to is unknown."""


SILENCES: Final = (ServerSilent, ConnectionTimeout)
"""The errors of a server that does not answer, before and after the connection is made."""


class LimitedConnection(Connection[Any]):
    def wait(self, gen: Generator[Any, Any, Answer], *args: Any, **kwargs: Any) -> Answer:
        """Like the base class. Raises ServerSilent, and then is closed."""
        try:
            return super().wait(_answered(gen), *args, **kwargs)
        except ServerSilent:
            # Otherwise a rollback would wait as long again.
            self.close()
            raise


def _answered(gen: Generator[Any, Any, Answer]) -> Generator[Any, Any, Answer]:
    """Pass `gen` through: it yields what it waits for, and is sent what is ready, which is nothing
    several times a second while the server is silent."""
    heard = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            now = time.monotonic()
            if ready:
                heard = now
            elif now - heard > SILENCE:
                raise ServerSilent(f"it has not answered for {now - heard:.0f} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        answer: Answer = end.value
        return answer
