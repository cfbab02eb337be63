"""The packed linears and experts of a base on disk: the second start reads them and quantizes
nothing.

A folder of `home/quantized` has the tensors of every `PackedLinear` in `packed.safetensors` and,
in its metadata, what else makes one of them. Its name ends in a digest of everything that the
numbers depend on (`key_of`), so a base whose files change is packed anew. All else, such as
embeddings and norms, comes from the base's own files. The folder may be deleted at any time.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lorry.errors import ModelError
from lorry.model.base_source import BaseSource
from lorry.model.compiled.compiled_linear import CompiledLinear, replace_linears
from lorry.model.compiled.compiled_stack import CompiledStack
from lorry.model.compiled.multiplier import Multiplier
from lorry.model.compiled.pack import PackedLinear
from lorry.model.compiled.tensor_reader import read_tensors
from lorry.model.experts import put
from lorry.model.guard import Unsafe
from lorry.model.half_embedding import expect_half
from lorry.model.progress import Say
from lorry.model.quantize import Precision
from lorry.model.store import build_once, require_room

logger = logging.getLogger(__name__)

FORMAT = 3
"""Of `PackedLinear` and of the files. Another number makes every kept base stale."""

METHOD = "lorry_packed"
"""What transformers calls the way of loading."""

_FILE = "packed.safetensors"

Kept: TypeAlias = CompiledLinear | CompiledStack

_TENSORS = tuple(
    one.name for one in fields(PackedLinear) if one.name not in ("out_features", "in_features")
)


@dataclass(frozen=True, slots=True)
class KeptBases:
    """Replaces the linears of bases by compiled ones, as `base_loader.LinearReplacer` says."""

    library: ctypes.CDLL
    home: Path | None
    """None: nothing is read or kept."""
    say: Say

    def config_of(self, found: BaseSource, precision: Precision) -> QuantizationConfigMixin | None:
        """What `from_pretrained` is given in place of bitsandbytes' configuration where the packed
        linears of this base are there; else None."""
        if self.home is None:
            return None
        folder = self._folder(self.home, found, precision)
        if not (folder / _FILE).is_file():
            return None
        try:
            return PackedConfig(_read(folder, self.library))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, Unsafe) as error:
            logger.warning(
                "the packed base in %s cannot be read (%s); it is made anew", folder, error
            )
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def replace(self, model: PreTrainedModel) -> bool:
        """True if all quantized linears were replaced (`compiled_linear.replace_linears`)."""
        return replace_linears(model, self.library)

    def keep(self, model: PreTrainedModel, found: BaseSource, precision: Precision) -> None:
        """For the next start. A disk that is full costs the next start time and nothing else."""
        if self.home is None:
            return
        folder = self._folder(self.home, found, precision)
        modules = {n: m for n, m in model.named_modules() if isinstance(m, Kept)}
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            needed = sum(module.nbytes for module in modules.values())
            require_room(folder.parent, needed, "the packed base")
            build_once(folder, lambda into: _write(into, modules), source=found.given, say=self.say)
            self.say(f"kept the packed base in {folder} for the next start")
        except (ModelError, OSError) as error:
            logger.warning("the packed base is not kept for the next start: %s", error)
            return
        stem = folder.name.rpartition("-")[0]
        for other in folder.parent.glob(f"{stem}-*"):
            if other != folder and re.fullmatch(rf"{re.escape(stem)}-[0-9a-f]{{16}}", other.name):
                shutil.rmtree(other, ignore_errors=True)

    def folder(self, found: BaseSource, precision: Precision) -> Path | None:
        """Where they are kept, or None."""
        if self.home is None:
            return None
        folder = self._folder(self.home, found, precision)
        return folder if (folder / _FILE).is_file() else None

    def _folder(self, home: Path, found: BaseSource, precision: Precision) -> Path:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", found.name)[:80]
        key = key_of(found, precision)
        return home / "quantized" / f"{name}-{precision.quantization}-{key}"


def key_of(found: BaseSource, precision: Precision) -> str:
    """16 hexadecimal digits of what the packed numbers depend on. The files count by name, size and
    time of change: reading them all would take longer than it saves."""
    files = [(path.name, path.stat()) for path in sorted(found.folder.glob("*.safetensors"))]
    depends = {
        "format": FORMAT,
        # A program can set the time of a file's modification, but not that of its last change.
        "files": [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in files],
        "folder": str(found.folder.resolve()),
        "config": hashlib.sha256((found.folder / "config.json").read_bytes()).hexdigest(),
        "quantization": precision.quantization,
        "double": precision.double_quant,
        "threshold": precision.int8_threshold,
        "dtype": str(precision.dtype),
        "versions": [version("bitsandbytes"), version("transformers")],
    }
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Linears and experts that are ready, for transformers' loader. Never written to a file."""

    def __init__(self, modules: Mapping[str, Kept] | None = None, **unused: Any) -> None:
        self.quant_method = METHOD
        self.modules = modules or {}

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD}


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts them into the empty model, so that transformers reads no weight of theirs."""

    requires_calibration = False

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, *, checkpoint_files: Sequence[str] | None, **more: Any
    ) -> None:
        for path, module in self.quantization_config.modules.items():
            parent, _, leaf = path.rpartition(".")
            owner = model.get_submodule(parent)
            if isinstance(module, CompiledStack):
                put(owner, leaf, module)
            else:
                setattr(owner, leaf, module)
        head = model.get_output_embeddings()
        if isinstance(head, CompiledLinear) and model.config.get_text_config().tie_word_embeddings:
            # transformers ties it, and wants a parameter for that. Nothing reads it.
            head.weight = nn.Parameter(torch.empty(0, head.in_features), requires_grad=False)
        expect_half(model, checkpoint_files or ())

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _write(folder: Path, modules: Mapping[str, Kept]) -> None:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, list[int]] = {}
    for path, module in modules.items():
        packed = module.packed
        if isinstance(module, CompiledStack):
            more = [0, module.experts]
        else:
            more = [int(module.transposed), 0]
        numbers[path] = [module.out_features, packed.out_features, packed.in_features, *more]
        for name in _TENSORS:
            tensor = getattr(packed, name)
            if tensor is not None:
                tensors[f"{path}:{name}"] = tensor
    save_file(tensors, folder / _FILE, metadata={"linears": json.dumps(numbers)})


def _read(folder: Path, library: ctypes.CDLL) -> Mapping[str, Kept]:
    metadata, tensors = read_tensors(folder / _FILE, torch.get_num_threads())
    numbers: dict[str, list[int]] = json.loads(metadata["linears"])
    widest = max(inputs for _, _, inputs, _, _ in numbers.values())
    multiplier = Multiplier(library, widest, torch.get_num_threads())
    found: dict[str, dict[str, Tensor]] = {path: {} for path in numbers}
    for key, tensor in tensors.items():
        path, _, name = key.rpartition(":")
        found[path][name] = tensor
    modules: dict[str, Kept] = {}
    for path, (out, outputs, inputs, transposed, experts) in numbers.items():
        packed = PackedLinear(out_features=outputs, in_features=inputs, **found[path])
        if experts:
            modules[path] = CompiledStack(packed, experts, multiplier)
        else:
            modules[path] = CompiledLinear(packed, out, multiplier, transposed=bool(transposed))
    return modules
