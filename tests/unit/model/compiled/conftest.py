"""Each instruction set of the compiled step, where this machine has it, and AMX in emulation."""

from __future__ import annotations

import ctypes

import pytest

from support.compiled import VARIANTS, compiled


@pytest.fixture(scope="session", params=VARIANTS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled(request.param, tmp_path_factory.mktemp("built"))
