"""Reads and verifies an adapter's two files against a base.

`inspect` trusts nothing: it checks the config, the safetensors header, every key, shape and dtype
against the base, and finally every number. `load` reads what `inspect` accepted. Each method
defines the meaning of its keys (`methods/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lorry_adapters.errors import InvalidAdapter, Problem, Remedy
from lorry_adapters.lora import room
from lorry_adapters.lora.adapter_size import AdapterSize, PairSize
from lorry_adapters.lora.aliases import as_named, foreign, resolve
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.config import MAX_CONFIG, read_config
from lorry_adapters.lora.expert_effects import AnyEffect
from lorry_adapters.lora.extremes import extreme, too_strong
from lorry_adapters.lora.idle import leave_out_unseen, why_apart, why_idle
from lorry_adapters.lora.methods.method import Method, VirtualTokenKind
from lorry_adapters.lora.methods.method_table import METHODS
from lorry_adapters.lora.parts import AdapterSpec, ClassifierHead, FileContents, LoraPair
from lorry_adapters.lora.problems import refusal, some
from lorry_adapters.lora.spelling import spelled
from lorry_adapters.lora.tensor_file import DTYPES, TensorEntry, TensorFile
from lorry_adapters.lora.vocabulary_size import grown, known_of

if TYPE_CHECKING:
    from lorry_adapters.lora.prompt import VirtualTokens

__all__ = [
    "CONFIG_FILE",
    "HUB_FILE",
    "WEIGHTS_FILE",
    "AdapterFacts",
    "AdapterWeights",
    "LoraPair",
    "inspect",
    "load",
]

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
_TENSORS: Final = "reading the adapter's tensors"
HUB_FILE: Final = "adapter.safetensors"
"""The name of the weights in AdapterHub's library. They are stored here under PEFT's name."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """An adapter in host memory. Its tensors do not alias a file."""

    digest: str
    modules: Mapping[str, LoraPair]
    """Pairs of matrices, by the path of the linear in the base."""
    bytes: int
    effects: Mapping[str, tuple[AnyEffect, ...]] = field(default_factory=dict)
    """All other effects, by the path of the module."""
    prompt: VirtualTokens | None = None
    score: ClassifierHead | None = None
    """The head of a classifier."""
    tokens: int = 0
    """Number of tokens that it knows, the first of the base's vocabulary. 0 means all."""

    @property
    def rank(self) -> int:
        """The largest rank of any pair."""
        return max((pair.a_RI.shape[0] for pair in self.modules.values()), default=0)


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """Facts about the files, as a version's record has them."""

    peft_type: str
    rank: int
    """Largest rank of any module; 0 for a method without one."""
    target_modules: tuple[str, ...]
    """Sorted last path components of the modules that it changes."""
    parameters: int
    bytes: int
    """Size of the tensors."""
    base_model: str | None
    task_type: str = "CAUSAL_LM"
    virtual_tokens: int = 0
    """Number of positions that it puts before the prompt."""
    invocation: tuple[int, ...] = ()
    """The token ids that activate an aLoRA."""
    scalable: bool = True
    """False if only the scales 0 and 1 are allowed."""
    labels: int = 0
    """Number of labels of a classifier."""
    tokens: int = 0
    """Number of tokens that it knows, if its tables have fewer than the base's. Otherwise 0."""
    warnings: tuple[str, ...] = ()
    """Notes for people about things that were accepted but may be mistakes."""


WhyNever = Callable[[AdapterSize], Problem | None]
"""Returns why a server can never hold an adapter of such a size, or None."""


def inspect(
    folder: Path, layout: BaseLayout, max_rank: int, why_never: WhyNever = lambda size: None
) -> AdapterFacts:
    """Verify everything and return the facts.

    Raises InvalidAdapter with all problems, OutOfMemory, and OSError if the disk fails."""
    problems: list[str] = []
    spec = _config(folder, problems)
    sound = not problems
    try:
        file = _open(folder)
    except InvalidAdapter as error:
        raise refusal([*problems, *error.problems]) from None
    with file:
        # Before the first tensor is read: the header has all sizes.
        room.require(file.memory, _TENSORS)
        layout = as_named(layout, file.entries)
        spelling = spelled(layout, file.entries)
        known = foreign(spelling.layout)
        larger = grown(file, known)
        if larger is not None:
            problems.append(larger)
        contents = None if spec is None else spec.contents(file, known, problems, sound=sound)
        if contents is not None:
            problems.extend(_over_limit(contents, max_rank))
            assert spec is not None
            size = _size_from(file, contents, spelling.layout, METHODS[spec.peft_type])
            never = why_never(size)
            problems.extend([] if never is None else [never])
        for key, entry in file.entries.items():
            if entry.dtype in DTYPES:
                wrong = extreme(key, file.read(key), places=key in file.places)
                problems.extend([] if wrong is None else [wrong])
        if problems:
            raise refusal(problems)
        assert spec is not None and contents is not None
        parts = spelling.back(resolve(contents.read(), layout, problems))
        warnings = [*contents.warnings, *leave_out_unseen(parts, layout, problems)]
        problems.extend(too_strong(parts.pairs, parts.effects))
        problems.extend(why_apart(parts, layout))
        if problems:
            raise refusal(problems)
        idle = why_idle(parts)
        if idle is not None:
            raise refusal([f"the adapter changes nothing: {idle}"])
        return AdapterFacts(
            peft_type=spec.peft_type,
            rank=max(contents.ranks.values(), default=0),
            target_modules=tuple(sorted({n.rpartition(".")[2] for n in contents.modules})),
            parameters=sum(entry.elements for entry in file.entries.values()),
            bytes=sum(entry.bytes for entry in file.entries.values()),
            base_model=spec.base_model,
            task_type=spec.task_type,
            virtual_tokens=contents.virtual_tokens,
            invocation=spec.invocation,
            scalable=METHODS[spec.peft_type].scalable,
            labels=contents.labels,
            tokens=known_of(file, known),
            warnings=tuple(warnings),
        )


def size_of(folder: Path, layout: BaseLayout) -> AdapterSize:
    """Return what an accepted adapter's memory depends on. Reads the header and the config.

    Raises InvalidAdapter or OSError if the files have changed.
    """
    problems: list[str] = []
    spec = _config(folder, problems)
    if spec is None or problems:
        raise refusal(problems)
    with _open(folder) as file:
        layout = spelled(as_named(layout, file.entries), file.entries).layout
        contents = spec.contents(file, foreign(layout), problems, sound=False)
        if problems:
            raise refusal(problems)
        return _size_from(file, contents, layout, METHODS[spec.peft_type])


def load(folder: Path, digest: str, layout: BaseLayout) -> AdapterWeights:
    """Read an adapter that `inspect` accepted.

    Raises InvalidAdapter or OSError if the files have changed.
    """
    problems: list[str] = []
    spec = _config(folder, problems)
    if spec is None or problems:
        raise refusal(problems)
    with _open(folder) as file:
        room.require(file.memory, _TENSORS)
        layout = as_named(layout, file.entries)
        spelling = spelled(layout, file.entries)
        known = foreign(spelling.layout)
        contents = spec.contents(file, known, problems)
        if problems:
            raise refusal(problems)
        parts = spelling.back(resolve(contents.read(), layout, problems))
        leave_out_unseen(parts, layout, problems)
        problems.extend(why_apart(parts, layout))
        tokens = known_of(file, known)
    if problems:
        raise refusal(problems)
    effects = {module: tuple(mine) for module, mine in parts.effects.items()}
    size = sum(pair.nbytes for pair in parts.pairs.values())
    every = [effect for mine in effects.values() for effect in mine]
    size += sum(effect.nbytes for effect in every)
    shared = {id(t): t.nbytes for effect in every for t in getattr(effect, "shared", ())}
    size += sum(shared.values())
    size += 0 if parts.prompt is None else parts.prompt.nbytes
    size += 0 if parts.score is None else parts.score.nbytes
    return AdapterWeights(digest, parts.pairs, size, effects, parts.prompt, parts.score, tokens)


def _over_limit(contents: FileContents, max_rank: int) -> list[str]:
    over = [name for name, rank in contents.ranks.items() if rank > max_rank]
    if not over:
        return []
    needed = max(contents.ranks.values())
    return [
        Problem(
            f"rank {needed} is over this server's limit of {max_rank}: {some(over)}",
            Remedy.RAISE_MAX_RANK,
            needed=needed,
            limit=max_rank,
        )
    ]


def _config(folder: Path, problems: list[str]) -> AdapterSpec | None:
    try:
        with (folder / CONFIG_FILE).open("rb") as file:
            spec, found = read_config(file.read(MAX_CONFIG + 1))
        problems.extend(found)
        return spec
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


def _size_from(
    file: TensorFile, contents: FileContents, layout: BaseLayout, method: Method
) -> AdapterSize:
    numbers = sum(entry.elements for entry in file.entries.values())
    if method.virtual_tokens is not VirtualTokenKind.NONE:
        return AdapterSize(file.memory, virtual_tokens=file.memory)
    modules = [m for name in contents.modules if (m := layout.modules.get(name)) is not None]
    pairs = tuple(
        PairSize(rank, module.in_features, module.out_features)
        for name, rank in contents.ranks.items()
        if (module := layout.modules.get(name)) is not None
    )
    paired = sum(pair.numbers for pair in pairs)
    tables = sum(entry.elements for entry in file.entries.values() if _is_table(entry, layout))
    return AdapterSize(
        # Some methods make pairs of fewer numbers than they have.
        weights=max(file.memory, 4 * paired if paired > numbers else 0),
        pairs=pairs,
        others=max(0, numbers - paired - tables),
        tables=tables,
        widths=sum(module.in_features + module.out_features for module in modules),
        full=sum(module.in_features * module.out_features for module in modules)
        if method.full_weights
        else 0,
    )


def _is_table(entry: TensorEntry, layout: BaseLayout) -> bool:
    """Return whether a tensor has a row for more than half of the base's tokens."""
    table = layout.modules.get(layout.input_embedding or "")
    return table is not None and len(entry.shape) == 2 and 2 * entry.shape[0] > table.in_features
