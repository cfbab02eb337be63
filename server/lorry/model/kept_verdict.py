"""What an earlier start found out about a base on the compiled step, kept for later starts.

Beside the packed linears (`lorry.model.compiled.kept_base`) lies how the step describes the layers,
as a sign that its answers agreed with transformers' own beyond every window and chunk. It is
believed only where nothing has changed that it depends on (`key_of`). The base itself is compared
with transformers' own answers at every start all the same (`selfcheck.SHORT`). How far these go by
themselves is kept, too: to measure it takes five more forward passes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch
from torch import nn

import lorry
import lorry_adapters
from lorry.model.base_loader import LoadedModel
from lorry.model.compiled import library
from lorry.model.compiled.description import ModelDescription
from lorry.model.first_pass import FirstPass
from lorry.model.trial import Noise
from lorry.settings import Settings

logger = logging.getLogger(__name__)

_FILE = "verdict.json"

_SETTINGS = (
    "kernels",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_memory",
    "kv_cache_dtype",
    "max_loras",
    "max_lora_rank",
)
"""What the self-check's runs depend on, beside the base."""

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "safetensors", "numpy")


@dataclass(frozen=True, slots=True)
class Verdict:
    described: ModelDescription
    """What the compiled step runs."""
    noise: Noise
    """Of the self-check of the base itself; empty if that did not need it."""


@dataclass(frozen=True, slots=True)
class KeptVerdict:
    """In `folder`, where the packed base lies; None: nothing is read or kept."""

    folder: Path | None
    key: str

    def read(self) -> Verdict | None:
        """Return None if all of it has to be found out."""
        if self.folder is None:
            return None
        try:
            key, verdict = _decode((self.folder / _FILE).read_bytes())
        except (OSError, msgspec.DecodeError):
            return None
        return verdict if key == self.key else None

    def keep(self, verdict: Verdict) -> None:
        """After every check has found it right. Not kept where JSON cannot say it."""
        if self.folder is None:
            return
        beside = self.folder / f"{_FILE}.partial"
        try:
            told = msgspec.json.encode((self.key, verdict))
            if _decode(told)[1] != verdict:
                return
            with beside.open("wb") as file:
                file.write(told)
                file.flush()
                os.fsync(file.fileno())
            beside.rename(self.folder / _FILE)
        except (OSError, TypeError, NotImplementedError, msgspec.MsgspecError) as error:
            logger.warning("the verdict is not kept for the next start: %s", error)

    def forget(self) -> None:
        if self.folder is not None:
            (self.folder / _FILE).unlink(missing_ok=True)


def verdict_of(settings: Settings, loaded: LoadedModel, found: FirstPass) -> KeptVerdict:
    if loaded.kept is None:
        return KeptVerdict(None, "")
    return KeptVerdict(loaded.kept, key_of(settings, loaded, found))


def key_of(settings: Settings, loaded: LoadedModel, found: FirstPass) -> str:
    """64 hexadecimal digits of everything that the checks depend on: the base (by the name of its
    folder, which `kept_base.key_of` makes), the code of Lorry, of the model and of the compiled
    step, the libraries, the processor, the settings, and what the first forward pass found."""
    paths = {module: path for path, module in loaded.model.named_modules()}
    shapes = [
        (paths[layer] if isinstance(layer, nn.Module) else layer, asdict(shape))
        for layer, shape in found.shapes.items()
    ]
    depends = {
        "base": str(loaded.kept),
        "lorry": [_digest_of_package(one) for one in (lorry.__file__, lorry_adapters.__file__)],
        "model": [(str(path), *_stamp(path)) for path in _files_of(loaded.model)],
        "step": _step(),
        "libraries": [version(name) for name in _LIBRARIES],
        "python": sys.version,
        "processor": [torch.backends.cpu.get_cpu_capability(), sorted(library.processor_flags())],
        "threads": torch.get_num_threads(),
        "settings": {name: getattr(settings, name) for name in _SETTINGS},
        "length": loaded.max_model_len,
        "dtype": str(loaded.dtype),
        "quantization": loaded.quantization,
        "first pass": [
            shapes,
            found.unpackable,
            sorted(found.reach.head),
            sorted(found.reach.apart),
        ],
    }
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


def _decode(told: bytes) -> tuple[str, Verdict]:
    return msgspec.json.decode(told, type=tuple[str, Verdict])


def _digest_of_package(init: str | None) -> str:
    assert init is not None
    folder = Path(init).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files_of(model: nn.Module) -> Iterable[Path]:
    kinds = {type(module) for module in model.modules()}
    return sorted({Path(inspect.getfile(kind)) for kind in kinds})


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _step() -> tuple[str, str]:
    """Return the instruction set and a digest of the library."""
    try:
        name, built = library.find()
    except library.Missing as missing:
        return str(missing), ""
    return name, hashlib.sha256(Path(built._name).read_bytes()).hexdigest()
