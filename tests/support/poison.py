"""Spoils the rows of one adapter in a real engine, in this process or in the engine's own.

The test and the engine share a file in the server's home folder, which says what is spoilt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from lorry import engine_program
from lorry.engine_core import EngineCore, load_core
from lorry.model.inputs import Inputs
from lorry.model.logits import Logits
from lorry.settings import Settings

FILE = "poison.json"


@dataclass(frozen=True, slots=True)
class Poison:
    digest: str
    longer_than: int = 0
    """Tokens; shorter rows are well."""
    gives_nan: bool = False
    """Else it raises ArithmeticError."""

    def give(self, home: Path) -> None:
        (home / FILE).write_text(json.dumps(asdict(self)))


def take_away(home: Path) -> None:
    (home / FILE).unlink(missing_ok=True)


def plant(core: EngineCore) -> EngineCore:
    """Goes before every path of the model."""
    paths = core.executor.paths
    for path in filter(None, (paths.compiled, paths.general)):
        _stand_before(path, core.settings.home / FILE, core.executor.placement.digest_of)
    return core


def program(connection: Connection, settings: Settings) -> None:
    """`lorry.engine_program.run`, with an engine that can be poisoned."""
    engine_program.load_core = lambda *given: plant(load_core(*given))
    engine_program.run(connection, settings)


def _stand_before(path: Any, file: Path, digest_of: Callable[[int], str]) -> None:
    run = path.run

    def poisoned(inputs: Inputs) -> Logits:
        logits: Logits = run(inputs)
        try:
            poison = Poison(**json.loads(file.read_text()))
        except FileNotFoundError:
            return logits
        for place, row in enumerate(inputs.attention.rows):
            mine = any(digest_of(use.slot) == poison.digest for use in row.adapters)
            if mine and row.start + len(row.token_ids) > poison.longer_than:
                if not poison.gives_nan:
                    raise ArithmeticError("poisoned")
                first, count = inputs.wanted[place]
                values = logits.values_KV.clone()
                values[first : first + count] = torch.nan
                logits = Logits.of(values)
        return logits

    path.run = poisoned
