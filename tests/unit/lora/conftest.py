"""The layouts of tiny real models, read off them once, and adapters for them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lorry.model.layout import layout_of
from lorry_adapters.lora.base import BaseLayout
from support import peft_made, tiny
from support.peft_adapters import edit_config
from support.peft_kinds import KINDS


@pytest.fixture(scope="session")
def layout() -> Callable[[str], BaseLayout]:
    """`layout("llama")`: the modules of that family's tiny model."""

    @cache
    def of(family: str) -> BaseLayout:
        return layout_of(tiny.build_model(family), f"tiny-{family}")

    return of


@pytest.fixture
def llama(layout: Callable[[str], BaseLayout]) -> BaseLayout:
    return layout("llama")


@pytest.fixture
def adapter(peft_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a plain llama adapter, rank 8, to be spoilt."""
    return Path(shutil.copytree(peft_adapter("llama", "plain"), tmp_path / "adapter"))


@pytest.fixture(scope="session")
def expert_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`expert_adapter("mixtral", "target_parameters, router")`: a folder; `**config` edits it."""
    root = tmp_path_factory.mktemp("experts")
    count = itertools.count()
    base_of = cache(tiny.build_model)

    @cache
    def original(family: str, kind: str, seed: int) -> Path:
        folder = root / f"{family}-{kind}-{seed}"
        return peft_made.make(KINDS[kind], family, base_of(family), folder, seed=seed).folder

    def make(family: str, kind: str, *, seed: int = 1, **config: Any) -> Path:
        folder = Path(shutil.copytree(original(family, kind, seed), root / f"copy{next(count)}"))
        edit_config(folder, **config)
        return folder

    return make
