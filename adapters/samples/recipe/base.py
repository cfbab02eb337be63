"""Where the base model's folder is: a folder of your own, or an alias that lorry fetches."""

from __future__ import annotations

from pathlib import Path

from lorry.model import base_source
from lorry.model.progress import meter_of
from lorry.settings import Settings

ALIAS = "smollm2-135m"


def base_folder(name: str) -> Path:
    """The folder of `name`, fetched and converted first if it is an alias. ModelError if not."""

    def say(line: str) -> None:
        print(line, flush=True)

    return base_source.fetch(name, Settings().home, say=say, meter=meter_of(say)).folder
