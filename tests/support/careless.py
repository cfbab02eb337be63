"""A server that does not look at an adapter's strength, in this process and in the engine's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import pytest

from lorry import engine_program
from lorry.settings import Settings
from lorry_adapters.lora import spot_check, weights

RUN = engine_program.run


@contextmanager
def looking_away() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(weights, "extreme", lambda *_, **__: None)
        for checking in (weights, spot_check):
            patched.setattr(checking, "too_strong", lambda *_: ())
        patched.setattr(engine_program, "run", program)
        yield


def program(connection: Connection, settings: Settings) -> None:
    with looking_away():
        RUN(connection, settings)
