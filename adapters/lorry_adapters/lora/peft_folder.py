"""A PEFT folder for tools and merging: the raw config, and tensors by module.

This is deliberately more lenient than `lora.weights.inspect`, as a tool must also read folders that
no server accepts yet. Keys are read with or without PEFT's prefix and an adapter's name. Tools
look up the config's keys when they need them.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from torch import Tensor

from lorry_adapters.errors import InvalidAdapter, ToolError
from lorry_adapters.lora.columns import by_rank, columns_of
from lorry_adapters.lora.json_text import NotUtf8, text_of
from lorry_adapters.lora.methods.method_table import method_of
from lorry_adapters.lora.patterns import Budget, SuffixRules
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.tensor_file import DTYPES, PLACES, TensorEntry, TensorFile
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE

PREFIX: Final = "base_model.model."
"""The prefix that PEFT writes before a module's path in the base."""

MAX_CONFIG: Final = 1 << 20

_STACKED: Final = ("gate_up_proj", "up_proj", "down_proj")
"""Parameters with the weights of all experts, in the order of the modules' attributes."""

_PAIR: Final = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<half>[AB])(?:\.[^.]+)?\.weight|embedding_(?P<table>[AB])(?:\.[^.]+)?)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """The keys of the two matrices of one module's LoRA."""

    module: str
    """Path in the base."""
    a_key: str
    b_key: str
    rank: int
    fan_in: int
    fan_out: int
    embedding: bool
    """True if the base's module is an embedding. A is then [rank, vocabulary]."""
    experts: int = 1
    """Number of experts with a pair each: A is [experts rank, in], B is [out, rank experts]."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the delta, [out, in]."""
        return self.fan_out, self.fan_in


class PeftFolder:
    """A folder, open for reading. Raises InvalidAdapter if it is not an adapter, and OSError."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.config: Mapping[str, Any] = read_config(folder)
        try:
            self._file = TensorFile(folder / WEIGHTS_FILE)
        except FileNotFoundError:
            raise InvalidAdapter([f"{WEIGHTS_FILE} is missing"]) from None
        self.entries: Mapping[str, TensorEntry] = self._file.entries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def read(self, key: str) -> Tensor:
        """Return a tensor as stored. Raises InvalidAdapter if adapters cannot have its dtype."""
        dtype = self.entries[key].dtype
        if dtype not in DTYPES and dtype not in PLACES:
            raise InvalidAdapter([f"{shown(key)} is {dtype}; read are {', '.join(DTYPES)}"])
        return self._file.read(key)

    def read_b(self, pair: Pair) -> Tensor:
        """Return B of a pair, with experts in PEFT's order whatever order the config declares."""
        b_OR = self.read(pair.b_key)
        try:
            grouped = pair.experts > 1 and columns_of(self.config).is_grouped(pair.module)
        except ValueError as error:
            raise InvalidAdapter([str(error)]) from None
        return by_rank(b_OR, pair.experts) if grouped else b_OR

    @property
    def peft_type(self) -> str:
        """The `peft_type`. For AdapterHub's configs, which have none, the name in records."""
        method = method_of(self.config)
        return str(self.config.get("peft_type")) if method is None else method.name

    def pairs(self) -> tuple[dict[str, Pair], list[str]]:
        """Return the LoRA pairs by module, in the order of layers, and all other keys."""
        halves: dict[str, dict[str, str]] = {}
        others: list[str] = []
        for key in self.entries:
            found = _PAIR.fullmatch(key)
            half = None if found is None else found["half"] or found["table"]
            if found is None or half is None or half in halves.get(_module(found), {}):
                others.append(key)
            else:
                halves.setdefault(_module(found), {})[half] = key
        pairs: dict[str, Pair] = {}
        for module in sorted(halves, key=natural):
            pair = self._pair(module, halves[module])
            if pair is None:
                others += halves[module].values()
            else:
                pairs[pair.module] = pair
        return pairs, others

    def _pair(self, module: str, keys: Mapping[str, str]) -> Pair | None:
        if set(keys) != {"A", "B"}:
            return None
        a, b = self.entries[keys["A"]].shape, self.entries[keys["B"]].shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
            return None
        # Blocks, or groups of inputs: these are not the shapes of the delta.
        if self.config.get("use_bdlora") or self.config.get("use_qalora"):
            return None
        embedding = "lora_embedding_" in keys["A"]
        if embedding != ("lora_embedding_" in keys["B"]):
            return None
        parameter = parameter_of(module, self.config.get("target_parameters"))
        rank = a[0] if parameter is None else self._rank(parameter, a[0])
        if a[0] % rank:
            return None
        path = parameter or module
        return Pair(path, keys["A"], keys["B"], rank, a[1], b[0], embedding, a[0] // rank)

    def _rank(self, parameter: str, rows: int) -> int:
        """Return the rank of each expert's pair, which the shapes of stacked tensors do not
        show."""
        if parameter.rpartition(".")[2] not in _STACKED:
            return rows
        pattern = self.config.get("rank_pattern") or {}
        rank = self.config.get("r", 8)
        if isinstance(pattern, dict) and pattern:
            found = SuffixRules[Any](pattern, where="rank_pattern").find(parameter, Budget())
            rank = rank if found is None else found
        return rank if isinstance(rank, int) and not isinstance(rank, bool) and rank > 0 else rows

    def strength(self, module: str, rank: int) -> float:
        """Return the factor of B·A: alpha/rank, or alpha/sqrt(rank) for rsLoRA. `alpha_pattern` may
        override alpha. Raises InvalidAdapter if the config has no number."""
        alpha = self.config.get("lora_alpha", 8)
        pattern = self.config.get("alpha_pattern") or {}
        if isinstance(pattern, dict) and pattern:
            found = SuffixRules[Any](pattern, where="alpha_pattern").find(module, Budget())
            alpha = alpha if found is None else found
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise InvalidAdapter([f"lora_alpha is {shown(alpha)}: it must be a number"])
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def parameter_of(module: str, targets: object) -> str | None:
    """Return the parameter to which a pair under this module's name belongs, according to
    `target_parameters`: PEFT nests a wrapper for each, with the last outermost."""
    owner = module
    while owner.endswith(".base_layer"):
        owner = owner.removesuffix(".base_layer")
    depth = (len(module) - len(owner)) // len(".base_layer")
    leaves = set()
    for target in targets if isinstance(targets, list) else []:
        place, _, leaf = str(target).rpartition(".")
        inside = owner.endswith(f".{place}") if place else owner.endswith(".experts")
        if inside or owner == place:
            leaves.add(leaf)
    order = sorted(leaves, key=lambda leaf: (leaf in _STACKED and _STACKED.index(leaf), leaf))
    return f"{owner}.{order[-1 - depth]}" if depth < len(order) else None


def _module(found: re.Match[str]) -> str:
    return found["module"].removeprefix(PREFIX)


def read_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json` unchecked. Raises InvalidAdapter if it is not an object."""
    try:
        with (folder / CONFIG_FILE).open("rb") as file:
            data = file.read(MAX_CONFIG + 1)
        text = text_of(data) if len(data) <= MAX_CONFIG else "null"
        value = json.loads(text, parse_constant=_no_constant)
    except FileNotFoundError:
        raise InvalidAdapter([f"{CONFIG_FILE} is missing"]) from None
    except NotUtf8 as error:
        raise InvalidAdapter([f"{CONFIG_FILE} {error}"]) from None
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter([f"{CONFIG_FILE} cannot be read as JSON: {error}"]) from None
    if not isinstance(value, dict):
        raise InvalidAdapter([f"{CONFIG_FILE} is not a JSON object of a config's size"])
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def natural(path: str) -> list[tuple[int, str]]:
    """Return a sort key that puts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def save(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a new PEFT folder, atomically. Raises ToolError."""
    with making(folder) as partial:
        write(partial, config, tensors)


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the two files of an adapter into an existing folder."""
    from safetensors.torch import save_file

    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    # transformers and PEFT require this metadata.
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()},
        folder / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )


def require_free(folder: Path) -> None:
    """Raise ToolError unless `folder` is missing or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ToolError(f"{folder} exists and is not an empty folder", param="out")


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Yield a folder that becomes `folder` if the block succeeds.

    Raises ToolError if `folder` exists and is not empty, or cannot be written.
    """
    require_free(folder)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise ToolError(
            f"{folder} cannot be written: {error.strerror or error}", param="out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
