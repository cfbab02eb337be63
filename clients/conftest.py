"""Where the server is, and what every client asks it."""

from __future__ import annotations

import os
from typing import Any, Literal

import pytest


@pytest.fixture(scope="session")
def url() -> str:
    return os.environ["LORRY_URL"]


@pytest.fixture(scope="session")
def v1(url: str) -> str:
    return f"{url}/v1"


@pytest.fixture(scope="session")
def dish() -> Any:
    """What a structured answer is. Each value is bounded, so that any model comes to its end."""
    # Not above: some clients come without it, and their tests do without this.
    import pydantic

    name = Literal["rice", "soup"]
    minutes = (int, pydantic.Field(ge=1, le=99))
    closed = pydantic.ConfigDict(extra="forbid")
    return pydantic.create_model("Dish", __config__=closed, name=name, minutes=minutes)
