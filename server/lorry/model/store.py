"""The model cache: a folder is complete or it is not there, whoever starts at once.

One process builds under a file lock, beside the final name, and renames; the others
wait and find it done. What a killed process left is removed by the next builder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from lorry.errors import ModelError
from lorry.model.progress import Meter, Say
from lorry.option import format_size

_MANIFEST = "lorry.json"

_NO_MANIFEST = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading one raises that is not there, cut off, or something else's."""

_CHUNK = 1 << 20


def models_folder(home: Path) -> Path:
    return home / "models"


def build_once(folder: Path, build: Callable[[Path], None], *, source: str, say: Say) -> Path:
    """`folder`, built by `build` in an empty one beside it unless it is there already.

    `source` is noted in it. Raises ModelError where there is no room or no permission,
    and where a finished folder has been tampered with.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            lock = FileLock(folder.with_name(folder.name + ".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"another process is preparing {source}; waiting for it")
                lock.acquire()
            try:
                if not folder.is_dir():
                    _build(folder, build, source)
            finally:
                lock.release()
    except OSError as error:
        raise storage_error(error, folder.parent) from error
    _verify(folder)
    return folder


def source_of(folder: Path) -> str | None:
    """What a folder of the cache was built from; None for any other folder."""
    try:
        return str(json.loads((folder / _MANIFEST).read_text())["source"])
    except _NO_MANIFEST:
        return None


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raises ModelError unless the file system of `folder` has `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"{what} needs {format_size(needed)} in {folder} and {format_size(free)} are free; "
            "make room, or point --home (LORRY_HOME) at a larger disk"
        )


def storage_error(error: OSError, folder: Path) -> ModelError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(
            f"no space left in {folder}; make room, or point --home (LORRY_HOME) at a larger disk"
        )
    return ModelError(
        f"the model cache {folder} cannot be used: {error.strerror or error}; "
        "point --home (LORRY_HOME) at a folder you may write"
    )


def sha256_of(file: Path, meter: Meter | None = None) -> str:
    """Hex digest of the content."""
    digest = hashlib.sha256()
    total = file.stat().st_size
    done = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if meter is not None:
                meter(f"checking {file.name}", done, total)
    return digest.hexdigest()


def _build(folder: Path, build: Callable[[Path], None], source: str) -> None:
    staging = folder.with_name(folder.name + ".partial")
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir()
    try:
        build(staging)
        sizes = {item.name: item.stat().st_size for item in sorted(staging.iterdir())}
        manifest = staging / _MANIFEST
        manifest.write_text(json.dumps({"source": source, "files": sizes}, indent=2) + "\n")
        for item in staging.iterdir():
            _flush(item)
        _flush(staging)
        staging.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _verify(folder: Path) -> None:
    try:
        sizes = json.loads((folder / _MANIFEST).read_text())["files"]
        sound = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except _NO_MANIFEST:
        sound = False
    if not sound:
        raise ModelError(
            f"the cached model in {folder} is damaged; delete that folder and start again"
        )
