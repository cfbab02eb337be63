"""Adapters that are already on the server's disk: the folders that a client may name.

A client that may upload must not be able to read the server's files. So a source and each of its
files is checked after its symlinks are resolved. A folder of symlinks, like the Hugging Face
cache, is accepted if they stay under the roots.
"""

from __future__ import annotations

from pathlib import Path

from lorry_adapters.errors import ForbiddenSource, UnsupportedUpload
from lorry_adapters.lora.problems import head_beside
from lorry_adapters.lora.weights import CONFIG_FILE, HUB_FILE, WEIGHTS_FILE
from lorry_adapters.lora.words import SOURCES, WORDS_FILE
from lorry_adapters.registry.archive import Upload


def upload_from(source: Path, roots: tuple[Path, ...]) -> Upload:
    """Return the files of the PEFT folder `source`.

    Raises ForbiddenSource unless everything is under one of `roots`, and UnsupportedUpload if a
    file is missing. Errors do not reveal what exists outside the roots.
    """
    resolved_roots = tuple(root.resolve() for root in roots)
    folder = _inside(source, resolved_roots)
    if not folder.is_dir():
        raise UnsupportedUpload(f"{source} is not a folder on this server", param="source")
    files = {}
    names = {entry.name for entry in folder.iterdir()}
    is_hub = HUB_FILE in names and WEIGHTS_FILE not in names
    head = head_beside(names)
    if is_hub and head is not None:
        raise UnsupportedUpload(head, param="source")
    weights = HUB_FILE if is_hub else WEIGHTS_FILE
    for name in (CONFIG_FILE, weights):
        file = _inside(folder / name, resolved_roots)
        if not file.is_file():
            found = ", ".join(sorted(names)[:8]) or "nothing"
            raise UnsupportedUpload(f"{source} has no {name}; it contains {found}", param="source")
        files[name] = file
    beside = {name: _inside(folder / name, resolved_roots) for name in SOURCES if name in names}
    beside = {name: file for name, file in beside.items() if file.is_file()}
    return Upload(config=files[CONFIG_FILE], weights=files[weights], words=beside)


def stored_upload(folder: Path) -> Upload:
    """Return the files of the content stored in `folder`."""
    words = folder / WORDS_FILE
    return Upload(
        config=folder / CONFIG_FILE,
        weights=folder / WEIGHTS_FILE,
        words={WORDS_FILE: words} if words.is_file() else {},
    )


def _inside(path: Path, roots: tuple[Path, ...]) -> Path:
    try:
        resolved = path.resolve()
        # Before Python 3.13 a loop of links raises in `resolve`; since then it is returned as it
        # is.
        if resolved.is_symlink():
            raise RuntimeError("its links form a loop")
    except (OSError, RuntimeError, ValueError) as error:
        raise ForbiddenSource(f"{path} cannot be resolved: {error}") from error
    if not any(resolved.is_relative_to(root) for root in roots):
        allowed = ", ".join(str(root) for root in roots)
        where = f"sources must be under {allowed}" if roots else "this server allows no folders"
        raise ForbiddenSource(f"{path} is not allowed as a source; {where}")
    return resolved
