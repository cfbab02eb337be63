"""The source of an adapter that a command is given: local files, or a name on a running server.

`A:0.7` adds a weight or a scale. A path that exists is always read as a path, even with colons.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from lorry.cli import transfer
from lorry.cli.server_connection import Connection, ServerError
from lorry.errors import SettingsError
from lorry_adapters.lora.problems import pickled

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def path_of(name: str) -> str:
    """The server's route of an adapter."""
    return "/adapters/" + quote(name, safe="")


def weighed(text: str) -> tuple[str, float | None]:
    """Split `legal:0.7` into (`legal`, 0.7), or None without a number. Raises SettingsError."""
    name, colon, number = text.rpartition(":")
    # A name may have colons; a part of one that begins like a number is read as a number.
    if not colon or Path(text).exists() or not re.match(r"[-+.]?[0-9]|nan|inf", number, re.I):
        return text, None
    try:
        value = float(number)
    except ValueError:
        raise SettingsError(
            f"{text}: {number!r} is no number; write NAME:0.7, or the name alone"
        ) from None
    if not name or not math.isfinite(value):
        raise SettingsError(f"{text}: write NAME:0.7, with a finite number, or the name alone")
    return name, value


@contextmanager
def opened(given: str, url: str, api_key: str | None) -> Iterator[Path]:
    """Yield the folder of an adapter's two files.

    Raises LocalFileError, ServerError, and what an archive can be refused for.
    """
    path = Path(given)
    if path.is_dir():
        transfer.parts(path)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="lorry-adapter-") as scratch:
        folder = Path(scratch) / "adapter"
        if path.is_file():
            folder.mkdir()
            unpack(path, folder)
        else:
            _download(given, folder, url, api_key)
        yield folder


def unpack(archive: Path, into: Path, max_bytes: int = sys.maxsize) -> None:
    """Unpack the two files of a zip, tar or tar.gz. A pickle is refused without opening it."""
    from lorry_adapters.registry.archive import Upload
    from lorry_adapters.registry.archive import unpack as unpacked

    if archive.name.endswith(PICKLES):
        raise transfer.LocalFileError(pickled(str(archive), archive.name))
    unpacked(Upload(archive=archive), into, max_bytes=max_bytes)


def _download(given: str, folder: Path, url: str, api_key: str | None) -> None:
    if given.startswith((".", "/", "~")) or not given:
        raise transfer.LocalFileError(f"{given} does not exist")
    name, at, version = given.partition("@")
    route = f"{path_of(name)}/content" + (f"?version={quote(version, safe='')}" if at else "")
    try:
        with Connection(url, api_key) as server:
            transfer.download(server, route, folder, name)
    except ServerError as error:
        raise ServerError(f"{given} is no folder and no file here; {error.message}") from None
