"""The layouts of tiny real models, read off them once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from lorry.model.layout import layout_of
from lorry_adapters.lora.base import BaseLayout
from support import tiny


@pytest.fixture(scope="session")
def layout() -> Callable[[str], BaseLayout]:
    """`layout("llama")`: the modules of that family's tiny model."""

    @cache
    def of(family: str) -> BaseLayout:
        return layout_of(tiny.build_model(family), f"tiny-{family}")

    return of
