"""The base that adapters are made for, and that a server of our own serves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorry.bench import random_adapters
from lorry.bench.random_adapters import Shapes
from lorry.model.progress import Meter, Say


@dataclass(eq=False)
class ServedBase:
    """Fetched, converted and read only when something of it is needed."""

    model: str
    """As for `lorry serve`."""
    home: Path
    say: Say
    meter: Meter

    def fetch(self) -> None:
        """Now, so that nothing is downloaded later on. Raises ModelError."""
        _ = self.folder

    @cached_property
    def folder(self) -> Path:
        """Raises ModelError."""
        # transformers takes seconds to import, and a base by URL needs none of this.
        from lorry.model import base_source

        found = base_source.fetch(self.model, self.home, say=self.say, meter=self.meter)
        return found.folder

    @cached_property
    def name(self) -> str:
        """What a server of our own calls it."""
        return Path(self.model).name

    @cached_property
    def shapes(self) -> Shapes:
        """Raises ModelError, NoProjections."""
        return random_adapters.shapes_of(self.folder)

    def write_adapter(self, folder: Path, index: int, rank: int) -> None:
        """Raises ModelError, NoProjections."""
        random_adapters.write(folder, self.shapes, index, rank, base=self.name)
