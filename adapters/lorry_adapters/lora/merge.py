"""Merges several LoRA adapters into one with PEFT's own combination functions.

Each module's matrices are merged like `LoraModel.add_weighted_adapter` of peft 0.21, through the
tensor functions in `peft.utils.merge_utils`, so no base model is needed. The tests compare both.
With w the weights and s the trained strengths:

    linear, magnitude_prune, ties, dare_linear, dare_ties
                on the matrices: A' = f(A_i; ±sqrt|w_i s_i|), B' = f(B_i; sqrt|w_i s_i|). All of
                one rank. B'·A' has cross terms B_i·A_j: a rough approximation of the sum.
    cat         A' = [w_i s_i A_i], B' = [B_i]: exactly the sum; the ranks add up.
    svd         the best approximation of the sum with a given rank.
    ties_svd, dare_linear_svd, dare_ties_svd, magnitude_prune_svd
                f on the deltas s_i B_i·A_i themselves, then as svd.

One departure: PEFT keeps rsLoRA of the first adapter while it sets alpha to the rank, and so
multiplies the result by sqrt(rank). Here the result is plain LoRA of strength 1.

Sources: TIES, https://arxiv.org/abs/2306.01708; DARE, https://arxiv.org/abs/2311.03099.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lorry_adapters.errors import Problem, Remedy, ToolError
from lorry_adapters.lora.methods.initialisation import changed_base
from lorry_adapters.lora.methods.lora_method import LORA
from lorry_adapters.lora.peft_folder import PREFIX, Pair, PeftFolder, natural, save, write
from lorry_adapters.lora.problems import refusal, shown, some

MATRIX_METHODS: Final = ("linear", "magnitude_prune", "ties", "dare_linear", "dare_ties")
SVD_METHODS: Final = ("svd", "magnitude_prune_svd", "ties_svd", "dare_linear_svd", "dare_ties_svd")
METHODS: Final = (*MATRIX_METHODS, *SVD_METHODS, "cat")
SIGN_METHODS: Final = ("total", "frequency")

MAX_ADAPTERS: Final = 64
_MAX_WEIGHT: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to merge. Raises ToolError for values that make no sense."""

    method: str
    density: float | None = None
    """Share of the numbers that pruning keeps, above 0 and at most 1; not for linear, cat and
    svd."""
    majority_sign_method: str = "total"
    """How ties elects a sign: by the sum (`total`) or by the count (`frequency`)."""
    rank: int | None = None
    """Rank of the result, for svd methods. None: the largest rank of the adapters."""
    seed: int = 0
    """Seed for dare, which drops numbers at random."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ToolError(f"there is no method {shown(self.method)}: {', '.join(METHODS)}")
        if self.majority_sign_method not in SIGN_METHODS:
            raise ToolError(
                f"there is no majority sign method {shown(self.majority_sign_method)}: "
                f"{', '.join(SIGN_METHODS)}"
            )
        if self.prunes and self.density is None:
            raise ToolError(f"{self.method} needs a density: the share of numbers it keeps")
        if not self.prunes and self.density is not None:
            raise ToolError(f"{self.method} prunes nothing: leave the density out")
        # PEFT accepts 0 and makes an adapter without effect.
        if self.density is not None and not 0 < self.density <= 1:
            raise ToolError(f"the density must be above 0 and at most 1, not {self.density:g}")
        if self.rank is not None and self.method not in SVD_METHODS:
            raise ToolError(f"a rank is chosen with {', '.join(SVD_METHODS)} only")
        if self.rank is not None and self.rank < 1:
            raise ToolError("the rank must be at least 1")
        if not 0 <= self.seed < 1 << 63:
            raise ToolError("the seed must be a whole number from 0, below 2^63")

    @property
    def prunes(self) -> bool:
        return self.method not in ("linear", "cat", "svd")

    def key(self, parts: Sequence[tuple[str, float]]) -> str:
        """Return the cache key of a result. `parts`: digests and weights, in order."""
        text = json.dumps([asdict(self), [list(part) for part in parts]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Part:
    folder: Path
    weight: float
    label: str
    """Its name in messages."""


@dataclass(frozen=True, slots=True)
class MergedAdapter:
    """The merged adapter, in memory."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    rank: int
    modules: int

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def save(self, folder: Path) -> None:
        """Write a new folder, atomically. Raises ToolError."""
        save(folder, self.config, self.tensors)

    def write(self, folder: Path) -> None:
        """Write into an existing folder."""
        write(folder, self.config, self.tensors)


def merge(
    parts: Sequence[Part],
    recipe: Recipe,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> MergedAdapter:
    """Merge the adapters of `parts`. `tell` is given the modules that are done, and all.

    Raises InvalidAdapter with every problem that prevents a merge, ToolError for a bad weight.
    """
    if not 2 <= len(parts) <= MAX_ADAPTERS:
        raise ToolError(f"a merge takes from 2 to {MAX_ADAPTERS} adapters, not {len(parts)}")
    for part in parts:
        if not math.isfinite(part.weight) or abs(part.weight) > _MAX_WEIGHT:
            raise ToolError(
                f"the weight of {part.label} must be a number of at most {_MAX_WEIGHT:g} in "
                f"magnitude, not {part.weight:g}"
            )
    with ExitStack() as opened:
        folders = [opened.enter_context(PeftFolder(part.folder)) for part in parts]
        sources = [
            _Source(folder, folder.pairs()[0], part.weight, part.label)
            for folder, part in zip(folders, parts, strict=True)
        ]
        problems = [text for source in sources for text in _unfit(source)]
        problems += _apart(sources, recipe)
        if problems:
            raise refusal(problems)
        rank = _rank(sources, recipe)
        # The functions of dare draw from torch's own generator, which is restored afterwards.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            tensors = _merged(sources, recipe, rank, tell)
        return MergedAdapter(_config(sources, rank), tensors, rank, len(tensors) // 2)


@dataclass(frozen=True, slots=True)
class _Source:
    folder: PeftFolder
    pairs: Mapping[str, Pair]
    weight: float
    label: str


@dataclass(frozen=True, slots=True)
class _Delta:
    """One adapter's share of one module, in float32."""

    a_RI: Tensor
    b_OR: Tensor
    weight: float
    strength: float


def _unfit(source: _Source) -> list[str]:
    """Return the reasons why an adapter cannot be merged at all."""
    config, label = source.folder.config, source.label
    others = source.folder.pairs()[1]
    if source.folder.peft_type != LORA.name:
        return [f"{label} is {shown(config.get('peft_type'))}: only LoRA adapters are merged"]
    problems = []
    for key, name in (("use_dora", "DoRA"), ("alora_invocation_tokens", "activated LoRA")):
        if config.get(key):
            problems.append(
                f"{label} is {name}, which is not a sum of matrices: it cannot be merged"
            )
    if config.get("target_parameters"):
        problems.append(
            f"{label} is on bare parameters (target_parameters), which PEFT cannot merge either"
        )
    if others and not problems:
        problems.append(
            f"{label} has tensors beside its LoRA matrices, which have no merge: {some(others)}"
        )
    start = changed_base(config)
    if start is not None:
        problems.append(
            Problem(
                f"{label} is {start}, relative to a changed base: convert it first",
                Remedy.CONVERT_START,
            )
        )
    if not source.pairs:
        problems.append(f"{label} has no LoRA matrices")
    for pair in source.pairs.values():
        for key in (pair.a_key, pair.b_key):
            if not torch.isfinite(source.folder.read(key)).all():
                problems.append(f"{label}: {shown(key)} contains NaN or infinite numbers")
    return problems


def _apart(sources: Sequence[_Source], recipe: Recipe) -> list[str]:
    """Return the reasons why these adapters cannot be merged with each other."""
    problems = []
    ranks: dict[str, set[int]] = {}
    for module in _modules(sources):
        pairs = [(s.label, s.pairs[module]) for s in sources if module in s.pairs]
        first_label, first = pairs[0]
        for label, pair in pairs[1:]:
            if pair.shape != first.shape or pair.embedding != first.embedding:
                problems.append(
                    f"{shown(module)} is {list(first.shape)} in {first_label} and "
                    f"{list(pair.shape)} in {label}: they were made for different bases"
                )
        if len({pair.rank for _, pair in pairs}) > 1:
            ranks[module] = {pair.rank for _, pair in pairs}
    if ranks and recipe.method in MATRIX_METHODS:
        module, different = next(iter(ranks.items()))
        other = "svd" if recipe.method == "linear" else f"{recipe.method}_svd"
        problems.append(
            f"{recipe.method} works on the matrices, which must have one rank; {shown(module)} has "
            f"{' and '.join(map(str, sorted(different)))} (and {len(ranks) - 1} more modules "
            f"differ): use {other}, or cat"
        )
    return problems


def _modules(sources: Sequence[_Source]) -> list[str]:
    return sorted({module for source in sources for module in source.pairs}, key=natural)


def _rank(sources: Sequence[_Source], recipe: Recipe) -> int:
    """Return the rank of all modules of the result. As in PEFT, zeros pad smaller ranks."""
    if recipe.rank is not None:
        return recipe.rank
    combine = sum if recipe.method == "cat" else max
    return max(
        combine([s.pairs[module].rank for s in sources if module in s.pairs])
        for module in _modules(sources)
    )


def _merged(
    sources: Sequence[_Source], recipe: Recipe, rank: int, tell: Callable[[int, int], None]
) -> dict[str, Tensor]:
    dtype = _dtype(sources)
    tensors = {}
    modules = _modules(sources)
    for done, module in enumerate(modules):
        tell(done, len(modules))
        pair = next(s.pairs[module] for s in sources if module in s.pairs)
        deltas = [_delta(s, s.pairs[module]) for s in sources if module in s.pairs]
        if recipe.method == "cat":
            a = torch.cat([d.a_RI * d.weight * d.strength for d in deltas], dim=0)
            b = torch.cat([d.b_OR for d in deltas], dim=1)
        elif recipe.method in MATRIX_METHODS:
            a, b = _by_matrix(deltas, recipe)
        else:
            a, b = _by_svd(deltas, recipe, rank)
        half = "lora_embedding_{}" if pair.embedding else "lora_{}.weight"
        room = rank - a.shape[0]
        tensors[f"{PREFIX}{module}.{half.format('A')}"] = torch.nn.functional.pad(
            a, (0, 0, 0, room)
        ).to(dtype)
        tensors[f"{PREFIX}{module}.{half.format('B')}"] = torch.nn.functional.pad(b, (0, room)).to(
            dtype
        )
    return tensors


def _delta(source: _Source, pair: Pair) -> _Delta:
    return _Delta(
        source.folder.read(pair.a_key).float(),
        source.folder.read(pair.b_key).float(),
        source.weight,
        source.folder.strength(pair.module, pair.rank),
    )


def _dtype(sources: Sequence[_Source]) -> torch.dtype:
    """Return the common dtype of all adapters, or float32 if they differ."""
    found = {s.folder.read(next(iter(s.pairs.values())).a_key).dtype for s in sources}
    return found.pop() if len(found) == 1 else torch.float32


def _by_matrix(deltas: Sequence[_Delta], recipe: Recipe) -> tuple[Tensor, Tensor]:
    strengths = [d.weight * d.strength for d in deltas]
    # The sign goes to one side only: on both it would cancel.
    to_a = [math.copysign(math.sqrt(abs(one)), one) for one in strengths]
    to_b = [math.sqrt(abs(one)) for one in strengths]
    a = _combine([d.a_RI for d in deltas], to_a, recipe)
    return a, _combine([d.b_OR for d in deltas], to_b, recipe)


def _by_svd(deltas: Sequence[_Delta], recipe: Recipe, rank: int) -> tuple[Tensor, Tensor]:
    """Return A [<= rank, in], B [out, <= rank]."""
    if recipe.method == "svd":
        # The sum has a low rank: the svd of a small core gives the same result much faster.
        b = torch.cat([d.b_OR * (d.weight * d.strength) for d in deltas], dim=1)
        a = torch.cat([d.a_RI for d in deltas], dim=0)
        left, core_b = torch.linalg.qr(b)
        right, core_a = torch.linalg.qr(a.T)
        u, s, vh = torch.linalg.svd(core_b @ core_a.T, full_matrices=False)
        u, vh = left @ u, vh @ right.T
    else:
        dense = [d.b_OR @ d.a_RI * d.strength for d in deltas]
        total = _combine(dense, [d.weight for d in deltas], recipe)
        u, s, vh = torch.linalg.svd(total, full_matrices=False)
    return vh[:rank], u[:, :rank] * s[:rank]


def _combine(tensors: list[Tensor], weights: Sequence[float], recipe: Recipe) -> Tensor:
    """Apply PEFT's function for the method's name without `_svd`."""
    functions = _peft()
    weight = torch.tensor(weights)
    method = recipe.method.removesuffix("_svd")
    result: Tensor
    match method:
        case "linear" | "svd":
            result = functions.task_arithmetic(tensors, weight)
        case "ties" | "dare_ties":
            result = getattr(functions, method)(
                tensors, weight, _kept(recipe), recipe.majority_sign_method
            )
        case _:
            result = getattr(functions, method)(tensors, weight, _kept(recipe))
    return result


def _kept(recipe: Recipe) -> float:
    assert recipe.density is not None
    return recipe.density


def _peft() -> Any:
    # Not at the top: importing PEFT takes seconds, as it imports all of its methods.
    from peft.utils import merge_utils

    return merge_utils


def _config(sources: Sequence[_Source], rank: int) -> dict[str, Any]:
    first = sources[0].folder.config
    bases = {source.folder.config.get("base_model_name_or_path") for source in sources}
    return {
        "peft_type": LORA.name,
        "task_type": first.get("task_type"),
        "base_model_name_or_path": bases.pop() if len(bases) == 1 else None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "fan_in_fan_out": bool(first.get("fan_in_fan_out")),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": _targets(sources),
    }


def _targets(sources: Sequence[_Source]) -> list[str]:
    """Return the adapters' own names if their union selects the union of their modules; otherwise
    the whole path of every module."""
    configs = [source.folder.config for source in sources]
    plain = all(
        isinstance(config.get("target_modules"), list)
        and all(isinstance(name, str) for name in config["target_modules"])
        and not config.get("exclude_modules")
        and config.get("layers_to_transform") is None
        for config in configs
    )
    if plain:
        return sorted({name for config in configs for name in config["target_modules"]})
    return _modules(sources)
