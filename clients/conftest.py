"""Where the server is, and what every client asks it."""

from __future__ import annotations

import os
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field


class Dish(BaseModel):
    """What a structured answer is. Each value is bounded, so that any model comes to its end."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["rice", "soup"]
    minutes: int = Field(ge=1, le=99)


@pytest.fixture(scope="session")
def url() -> str:
    return os.environ["LORRY_URL"]


@pytest.fixture(scope="session")
def v1(url: str) -> str:
    return f"{url}/v1"


@pytest.fixture(scope="session")
def dish() -> type[BaseModel]:
    return Dish
