from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.engine_thread import House, running_house


@pytest.fixture
def house() -> Iterator[House]:
    with running_house() as one:
        yield one
