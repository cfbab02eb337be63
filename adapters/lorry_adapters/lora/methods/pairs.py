"""Pairs of matrices in a file, which LoRA and related methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.keys import LINEAR, Keys, linear_names
from lorry_adapters.lora.patterns import Budget, SuffixRules
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.target_modules import Targets
from lorry_adapters.lora.tensor_file import TensorFile


@dataclass(frozen=True, slots=True)
class PairKeys:
    """The keys of one module's two matrices."""

    module: BaseModule
    a_key: str
    b_key: str


def find_pairs(
    keys: Keys,
    layout: BaseLayout,
    problems: list[str],
    *,
    a: str,
    b: str,
    kinds: tuple[ModuleKind, ...] = LINEAR,
) -> dict[str, PairKeys]:
    """Return the complete pairs by module. `a` and `b` are parameters of `Keys`."""
    found = {}
    for name, mine in keys.modules.items():
        halves = [half for half in (a, b) if half in mine]
        module = layout.modules[name]
        if not halves:
            continue
        if module.kind not in kinds:
            problems.append(not_linear(module))
        elif len(halves) == 2:
            found[name] = PairKeys(module, mine[a], mine[b])
        else:
            (half,) = halves
            missing = b if half == a else a
            problems.append(f"{shown(name)} has {_short(half)} and no {_short(missing)}")
    return found


def _plain_widths(module: BaseModule, pair: tuple[int, int], rank: int) -> tuple[int, int]:
    return module.in_features, rank


def find_ranks(
    file: TensorFile,
    pairs: Mapping[str, PairKeys],
    problems: list[str],
    widths: Callable[[BaseModule, tuple[int, int], int], tuple[int, int]] = _plain_widths,
) -> dict[str, int]:
    """Return the ranks in the file by module; shapes that do not fit are added to `problems`.

    `widths` returns the widths that A and B must have, from the module, their widths in the file,
    and A's rank.
    """
    ranks = {}
    empty = []
    for name, pair in pairs.items():
        a, b = file.entries[pair.a_key].shape, file.entries[pair.b_key].shape
        if 0 in (*a, *b):
            empty.append(pair.a_key if 0 in a else pair.b_key)
            continue
        rank, wide = (a[0], a[1]) if len(a) == 2 else (0, 0)
        have = wide, b[1] if len(b) == 2 else 0
        a_width, b_width = widths(pair.module, have, rank)
        fan_out, experts = pair.module.out_features, pair.module.experts
        if rank < 1 or wide != a_width or rank % experts:
            rows = "rank" if experts == 1 else f"{experts} times the rank"
            problems.append(
                f"{shown(pair.a_key)} is {list(a)}; this base needs [{rows}, {a_width}]"
            )
        elif len(b) != 2 or b[0] != fan_out:
            problems.append(f"{shown(pair.b_key)} is {list(b)}; this base needs [{fan_out}, rank]")
        elif b[1] != b_width:
            had = f"rank {b[1]}" if b_width == rank else f"{b[1]} columns, not {b_width}"
            problems.append(f"{shown(name)}: lora_A has rank {rank}, lora_B has {had}")
        else:
            ranks[name] = rank // experts
    if empty:
        shape = list(file.entries[empty[0]].shape)
        problems.append(
            f"{shown(empty[0])} is {shape}, so it contains no number ({len(empty)} modules): the "
            "parts of DeepSpeed ZeRO-3 or FSDP were not gathered when it was saved; save again "
            "with stage3_gather_16bit_weights_on_model_save or full_state_dict"
        )
    return ranks


def disagreements(
    targets: Targets,
    layout: BaseLayout,
    budget: Budget,
    found: Mapping[str, object],
    *,
    kinds: tuple[ModuleKind, ...] = LINEAR,
    also: Iterable[str] = (),
    refused: Callable[[BaseModule], str],
) -> Iterator[str]:
    """Yield the differences between the config's target modules and the modules in the file. `also`
    are modules targeted by fields other than target_modules.

    Raises InvalidAdapter if the config's regular expressions take too long to match.
    """
    wanted = {module.name: module for module in targets.select(layout, budget)}
    wanted |= {name: layout.modules[name] for name in also}
    if not wanted and (targets.target_modules or found):
        yield (
            f"the config matches no module of the base {layout.name}: target_modules is "
            f"{shown(_plain(targets.target_modules))}; the base has {some(linear_names(layout))}"
        )
    for module in wanted.values():
        if module.kind not in kinds:
            yield f"the config targets a module that cannot be served: {refused(module)}"
    served = [name for name, module in wanted.items() if module.kind in kinds]
    missing = [name for name in served if name not in found]
    if missing:
        yield f"the config targets {len(missing)} modules that the file lacks: {some(missing)}"
    extra = [name for name in found if name not in wanted]
    if extra and wanted:
        yield f"the file has {len(extra)} modules that the config does not target: {some(extra)}"


def not_linear(module: BaseModule) -> str:
    if module.kind is ModuleKind.EMBEDDING:
        return (
            f"{shown(module.name)} is an embedding: this method is not served on embeddings, or "
            "its tensors are not named lora_embedding_A and lora_embedding_B"
        )
    return f"{shown(module.name)} is not a linear module: a LoRA on it is not served"


def _plain(target_modules: tuple[str, ...] | str) -> object:
    return target_modules if isinstance(target_modules, str) else list(target_modules)


def _short(parameter: str) -> str:
    return parameter.removesuffix(".weight")


def read_rules(fields: Fields, key: str, values: Mapping[str, Any]) -> SuffixRules[Any]:
    """Read a `rank_pattern` or `alpha_pattern`; problems are added to `fields`."""
    try:
        return SuffixRules(values, where=key)
    except InvalidAdapter as error:
        fields.problems.extend(error.problems)
        return SuffixRules({}, where=key)
