"""An adapter's two files -> facts about it, or every reason why this base cannot serve it.

`inspect` believes nothing: the config, the safetensors header, every key, shape and type
against the resident base, and at last every number. `load` reads what `inspect` let in.

Accepted keys, for a linear `<module>` of the base:

    base_model.model.<module>.lora_A.weight     [r, in]     as PEFT saves them
    base_model.model.<module>.lora_B.weight     [out, r]

with or without the prefix `base_model.model.`, and with the adapter's name between `lora_A`
and `weight` (`lora_A.default.weight`), as a raw state dict has it. One name a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.config import MAX_CONFIG, parse_config
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.problems import refusal, shown, some
from lorry_adapters.lora.spec import AdapterSpec, targeted
from lorry_adapters.lora.tensor_file import DTYPES, TensorFile

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"

_PREFIX: Final = "base_model.model."
_KEY: Final = re.compile(
    r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.(?P<name>[^.]+))?\.weight", re.ASCII
)
_LINEAR: Final = (ModuleKind.LINEAR, ModuleKind.CONV1D)


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One module's delta: y += scaling * B(A(x)), in the type it was stored in."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float
    """The trained strength, alpha/r or alpha/sqrt(r); a request's scale multiplies it."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """An adapter in host memory. The tensors are its own: no file stands behind them."""

    digest: str
    modules: Mapping[str, LoraPair]
    """By the module's path in the base."""
    bytes: int

    @property
    def rank(self) -> int:
        """The largest of any module."""
        return max(pair.a_RI.shape[0] for pair in self.modules.values())

    @property
    def plain(self) -> bool:
        """Pairs of matrices and nothing else."""
        return True


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a version's record tells of the files."""

    peft_type: str
    rank: int
    """Largest rank of any module."""
    target_modules: tuple[str, ...]
    """Sorted last path components of the modules that carry a delta."""
    parameters: int
    bytes: int
    """Of the tensors."""
    base_model: str | None


@dataclass(frozen=True, slots=True)
class _Pair:
    """Where the file keeps the two matrices of one module."""

    module: BaseModule
    a_key: str
    b_key: str


def inspect(folder: Path, layout: BaseLayout, max_rank: int) -> AdapterFacts:
    """Verifies everything. Raises InvalidAdapter with all problems, OSError where a disk fails."""
    problems: list[str] = []
    spec = _config(folder, problems)
    try:
        file = _open(folder)
    except InvalidAdapter as error:
        raise refusal([*problems, *error.problems]) from None
    with file:
        pairs = _pairs(file, layout, problems)
        ranks = _ranks(file, pairs, problems)
        over = [name for name, rank in ranks.items() if rank > max_rank]
        if over:
            problems.append(
                f"rank {max(ranks.values())} is over this server's limit of {max_rank}, which "
                f"--max-lora-rank raises: {some(over)}"
            )
        if spec is not None:
            try:
                problems.extend(_disagreements(spec, layout, pairs, ranks))
            except InvalidAdapter as error:
                problems.extend(error.problems)
        for key, entry in file.entries.items():
            if entry.dtype in DTYPES and not torch.isfinite(file.read(key)).all():
                problems.append(f"{shown(key)} contains NaN or infinite numbers")
        if problems:
            raise refusal(problems)
        assert spec is not None
        return AdapterFacts(
            peft_type=spec.peft_type,
            rank=max(ranks.values()),
            target_modules=tuple(sorted({name.rpartition(".")[2] for name in pairs})),
            parameters=sum(entry.elements for entry in file.entries.values()),
            bytes=sum(entry.bytes for entry in file.entries.values()),
            base_model=spec.base_model,
        )


def load(folder: Path, digest: str, layout: BaseLayout) -> AdapterWeights:
    """Reads an adapter that `inspect` accepted.

    Raises InvalidAdapter or OSError where the files are no longer what they were.
    """
    problems: list[str] = []
    spec = _config(folder, problems)
    if spec is None:
        raise refusal(problems)
    budget = Budget()
    with _open(folder) as file:
        pairs = _pairs(file, layout, problems)
        _ranks(file, pairs, problems)
        if problems:
            raise refusal(problems)
        modules = {
            name: LoraPair(
                a_RI=file.read(pair.a_key),
                b_OR=file.read(pair.b_key),
                scaling=spec.scaling_of(name, budget),
            )
            for name, pair in pairs.items()
        }
    size = sum(pair.a_RI.nbytes + pair.b_OR.nbytes for pair in modules.values())
    return AdapterWeights(digest=digest, modules=modules, bytes=size)


def _config(folder: Path, problems: list[str]) -> AdapterSpec | None:
    try:
        with (folder / CONFIG_FILE).open("rb") as file:
            return parse_config(file.read(MAX_CONFIG + 1))
    except FileNotFoundError:
        problems.append(f"{CONFIG_FILE} is missing")
    except InvalidAdapter as error:
        problems.extend(error.problems)
    return None


def _open(folder: Path) -> TensorFile:
    try:
        return TensorFile(folder / WEIGHTS_FILE)
    except FileNotFoundError:
        raise InvalidAdapter([f"{WEIGHTS_FILE} is missing"]) from None


def _pairs(file: TensorFile, layout: BaseLayout, problems: list[str]) -> dict[str, _Pair]:
    """By module of the base, where both halves are there; all else is added to `problems`."""
    found: dict[str, dict[str, str]] = {}
    names: set[str | None] = set()
    unknown: dict[str, None] = {}
    not_linear: dict[str, BaseModule] = {}
    for key, entry in file.entries.items():
        match = _KEY.fullmatch(key)
        if match is None:
            problems.append(_unexpected(key))
            continue
        if entry.dtype not in DTYPES:
            problems.append(
                f"{shown(key)} is {entry.dtype}; adapters are served in {', '.join(DTYPES)}"
            )
        names.add(match["name"])
        module = _module(match["module"], layout)
        if module is None:
            unknown[match["module"].removeprefix(_PREFIX)] = None
        elif module.kind not in _LINEAR:
            not_linear[module.name] = module
        else:
            halves = found.setdefault(module.name, {})
            twin = halves.setdefault(match["half"], key)
            if twin != key:
                problems.append(f"{shown(key)} and {shown(twin)} name the same tensor")
    if len(names) > 1:
        every = sorted(f"lora_A.{name}" if name else "lora_A" for name in names)
        problems.append(f"the keys name more than one adapter: {some(every)}")
    problems.extend(map(_not_linear, not_linear.values()))
    problems.extend(_unknown_modules(list(unknown), bool(found or not_linear), layout))
    if not file.entries:
        problems.append(f"{WEIGHTS_FILE} holds no tensors")
    pairs = {}
    for name, halves in found.items():
        if len(halves) == 2:
            pairs[name] = _Pair(layout.modules[name], halves["A"], halves["B"])
        else:
            (half,) = halves
            missing = "B" if half == "A" else "A"
            problems.append(f"{shown(name)} has lora_{half} and no lora_{missing}")
    return pairs


def _module(path: str, layout: BaseLayout) -> BaseModule | None:
    # A base whose own paths began with the prefix would be meant literally.
    return layout.modules.get(path) or layout.modules.get(path.removeprefix(_PREFIX))


def _unexpected(key: str) -> str:
    what = shown(key)
    if "lora_embedding_" in key:
        return f"{what}: LoRA on embeddings is not served yet"
    if "lora_magnitude_vector" in key:
        return f"{what}: DoRA is not served yet"
    if key.endswith((".lora_B.bias", ".lora_A.bias")):
        return f"{what}: a bias on a LoRA matrix is not served yet"
    if "trainable_tokens" in key:
        return f"{what}: trainable tokens are not served yet"
    if "lora_" not in key:
        return (
            f"{what}: weights of the base itself are not served from an adapter; if they are only "
            "copies, save again with save_pretrained(..., save_embedding_layers=False)"
        )
    return f"{what}: unexpected key; expected {_PREFIX}<module>.lora_A.weight or .lora_B.weight"


def _not_linear(module: BaseModule) -> str:
    if module.kind is ModuleKind.EMBEDDING:
        return f"{shown(module.name)} is an embedding: LoRA on embeddings is not served yet"
    return f"{shown(module.name)} is not a linear module: a LoRA on it is not served"


def _unknown_modules(unknown: list[str], any_known: bool, layout: BaseLayout) -> Iterator[str]:
    if unknown and any_known:
        yield (
            f"the file has {len(unknown)} modules that the base {layout.name} has not: "
            f"{some(unknown)}"
        )
    elif unknown:
        yield (
            f"no module of the adapter is in the base {layout.name} ({layout.architecture}): "
            f"the adapter has {some(unknown)}; the base has {some(_linear_names(layout))}"
        )


def _linear_names(layout: BaseLayout) -> list[str]:
    return [module.name for module in layout.modules.values() if module.kind in _LINEAR]


def _ranks(file: TensorFile, pairs: Mapping[str, _Pair], problems: list[str]) -> dict[str, int]:
    """By module, as its tensors have it; shapes that do not fit are added to `problems`."""
    ranks = {}
    for name, pair in pairs.items():
        a, b = file.entries[pair.a_key].shape, file.entries[pair.b_key].shape
        fan_in, fan_out = pair.module.in_features, pair.module.out_features
        if len(a) != 2 or a[0] < 1 or a[1] != fan_in:
            problems.append(f"{shown(pair.a_key)} is {list(a)}; this base needs [rank, {fan_in}]")
        elif len(b) != 2 or b[0] != fan_out:
            problems.append(f"{shown(pair.b_key)} is {list(b)}; this base needs [{fan_out}, rank]")
        elif a[0] != b[1]:
            problems.append(f"{shown(name)}: lora_A has rank {a[0]}, lora_B has rank {b[1]}")
        else:
            ranks[name] = a[0]
    return ranks


def _disagreements(
    spec: AdapterSpec, layout: BaseLayout, pairs: Mapping[str, _Pair], ranks: Mapping[str, int]
) -> Iterator[str]:
    """Where the config says one thing and the tensors another.

    Raises InvalidAdapter when the config's expressions take too long to match.
    """
    budget = Budget()
    wanted = {module.name: module for module in targeted(spec, layout, budget)}
    if not wanted:
        yield (
            f"the config matches no module of the base {layout.name}: target_modules is "
            f"{shown(_plain(spec.target_modules))}; the base has {some(_linear_names(layout))}"
        )
    for module in wanted.values():
        if module.kind not in _LINEAR:
            yield f"the config targets a module that cannot be served: {_not_linear(module)}"
    linear = [name for name, module in wanted.items() if module.kind in _LINEAR]
    missing = [name for name in linear if name not in pairs]
    if missing:
        yield f"the config targets {len(missing)} modules that the file lacks: {some(missing)}"
    extra = [name for name in pairs if name not in wanted]
    if extra and wanted:
        yield f"the file has {len(extra)} modules that the config does not target: {some(extra)}"
    for name, rank in ranks.items():
        if name in wanted and spec.rank_of(name, budget) != rank:
            yield (
                f"{shown(name)} has rank {rank} in the file and "
                f"{spec.rank_of(name, budget)} by the config"
            )


def _plain(target_modules: tuple[str, ...] | str) -> object:
    return target_modules if isinstance(target_modules, str) else list(target_modules)
