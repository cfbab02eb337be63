"""Both instruction sets of the compiled step, where this machine has them."""

from __future__ import annotations

import ctypes

import pytest

from lorry.model.compiled import recipe
from support.compiled import compiled


@pytest.fixture(scope="session", params=recipe.INSTRUCTIONS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled(request.param, tmp_path_factory.mktemp("built"))
