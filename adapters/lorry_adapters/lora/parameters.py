"""Adapters on the bare parameters of a mixture of experts, in both spellings.

Since transformers 5 the weights of all experts are in one tensor, and an adapter names it in
`target_parameters`. PEFT wraps the module once for each parameter. So the innermost wrapper belongs
to the first parameter, and the last has no `base_layer` in its path. The columns of B may also have
another order (`columns`):

    mlp.experts.base_layer.lora_A.weight   [E r, in]    gate_up_proj   rows expert by expert
    mlp.experts.base_layer.lora_B.weight   [out, r E]                  columns rank by rank
    mlp.experts.lora_A.weight, .lora_B.weight           down_proj
    mlp.gate.lora_A.weight, .lora_B.weight              gate.weight, the router

PEFT up to 0.19.0 always took the parameter's last dimension for its outputs. If it is not, A and B
are exchanged. Their shapes show it or, if both dimensions are equal, the config's version.

Before transformers 5 each expert had its own linears, which `target_modules` names:

    block_sparse_moe.experts.3.w1.lora_A.weight, ...    Mixtral; w1 and w3 are gate_up_proj
    mlp.experts.3.gate_proj.lora_A.weight, ...          Qwen-MoE

`known_as` returns the base under the names of either spelling, with a linear-like module in place
of each parameter, so that targets, ranks and strengths are read as for any LoRA. The old
spelling is read as it was trained. PEFT converts it too, but then ignores `alpha_pattern` and
multiplies an rsLoRA on gate_up_proj by the square root of two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.base import BaseLayout, BaseModule, BaseParameter, ModuleKind
from lorry_adapters.lora.columns import Columns, by_rank, doubts, read_columns
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.expert_effects import ExpertLora, ExpertPairs, RouterPair
from lorry_adapters.lora.keys import PREFIX, module_of
from lorry_adapters.lora.parts import LoraPair, Parts
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.tensor_file import TensorFile

_IN_PLACE: Final = (0, 19, 1)
"""The first version of PEFT that orients A and B of a stacked parameter like those of a linear."""

STACKED: Final = (ModuleKind.EXPERTS, ModuleKind.ROUTER)


@dataclass(frozen=True, slots=True)
class Former:
    """A linear of the old spelling: its part of a parameter."""

    parameter: BaseParameter
    expert: int
    start: int
    """The first of the parameter's outputs that belongs to it."""


@dataclass(frozen=True, slots=True)
class NamedParameters:
    """A config's fields about parameters."""

    targets: tuple[str, ...]
    """Paths, or parts of paths after a dot."""
    version: tuple[int, ...] | None
    """The version of PEFT that saved it; versions before 0.18 did not write it."""
    columns: Columns

    @classmethod
    def read(cls, fields: Fields) -> NamedParameters:
        targets = fields.take("target_parameters", check.listed("names of parameters"), ())
        version, columns = _version(fields.raw("peft_version")), read_columns(fields)
        # Without targets, the other fields do not matter.
        return cls(targets, version, columns) if targets else cls((), None, Columns())


@dataclass(frozen=True, slots=True)
class Known:
    """The base under an adapter's names."""

    layout: BaseLayout
    parameters: Mapping[str, BaseParameter]
    """Modules of `layout` that are parameters, by name."""
    former: Mapping[str, Former]
    """Linears of the old spelling, by name."""
    exchanged: frozenset[str] = frozenset()
    """Those of `parameters` whose A and B are exchanged; `layout` has their inputs as outputs."""
    columns: Columns = field(default_factory=Columns)

    @property
    def targets(self) -> Iterable[str]:
        """Return the modules that the config selects beside its target_modules."""
        return self.parameters

    def is_special(self, module: str) -> bool:
        return module in self.parameters or module in self.former

    def warnings(self, ranks: Mapping[str, int]) -> Iterator[str]:
        """Yield warnings about ambiguous parameters. `ranks` are those of the pairs, by module."""
        stacked = any(
            one.shape.experts > 1 and ranks.get(name, 0) > 1 and self.columns.of(name) is None
            for name, one in self.parameters.items()
        )
        if stacked and self.columns.doubt is not None:
            yield doubts(self.columns.doubt)

    def path_of(self, module: str) -> str:
        """Return a module's name for people: a router has a name other than its weight's."""
        one = self.parameters.get(module)
        return one.owner if one is not None and one.shape.kind is ModuleKind.ROUTER else module

    def add(self, parts: Parts, pairs: Mapping[str, LoraPair]) -> None:
        """Add the pairs of such modules to `parts`, as effects on the modules with the
        parameters."""
        made: list[tuple[BaseParameter, ExpertPairs]] = []
        parameters: dict[str, BaseParameter] = {}
        linears: dict[tuple[str, int], dict[int, LoraPair]] = {}
        for name, pair in pairs.items():
            former = self.former.get(name)
            parameter = self.parameters[name] if former is None else former.parameter
            if parameter.shape.kind is ModuleKind.ROUTER:
                parts.add(parameter.owner, RouterPair(pair.a_RI, pair.b_OR, pair.scaling))
            elif former is None:
                stacked = _exchanged if name in self.exchanged else _stacked
                experts = parameter.shape.experts
                if self.columns.is_grouped(name):
                    pair = replace(pair, b_OR=by_rank(pair.b_OR, experts))
                made.append((parameter, stacked(pair, experts)))
            else:
                path = parameter.shape.name
                parameters[path] = parameter
                linears.setdefault((path, former.start), {})[former.expert] = pair
        for (path, start), mine in linears.items():
            experts = parameters[path].shape.experts
            made.append((parameters[path], _one_on_the_other(mine, experts, start)))
        owners: dict[str, dict[str, tuple[ExpertPairs, ...]]] = {}
        for parameter, one in made:
            leaf = parameter.shape.name.rpartition(".")[2]
            held = owners.setdefault(parameter.owner, {})
            held[leaf] = (*held.get(leaf, ()), one)
        for owner, held in owners.items():
            parts.add(owner, ExpertLora(held))


def known_as(
    layout: BaseLayout, named: NamedParameters, file: TensorFile, problems: list[str]
) -> Known:
    """Return the base in the file's spelling. The file's keys show it if the config does not."""
    if named.targets:
        return _by_parameter(layout, named, file, problems)
    former = _former(layout)
    if former and any(_module(key) in former for key in file.entries):
        return _by_linear(layout, former)
    return Known(layout, {}, {})


def _by_parameter(
    layout: BaseLayout, named: NamedParameters, file: TensorFile, problems: list[str]
) -> Known:
    targets = named.targets
    chosen = {path: one for path, one in layout.parameters.items() if _matches(path, targets)}
    bad = [path for path, one in chosen.items() if one.shape.kind not in STACKED]
    for module in layout.modules.values():
        paths = (f"{module.name}.weight", f"{module.name}.bias")
        bad += [p for p in paths if p not in layout.parameters and _matches(p, targets)]
    if bad:
        problems.append(
            "target_parameters selects parameters that cannot carry a pair of matrices, or weights "
            f"of modules that target_modules can name: {some(bad)}"
        )
    elif not chosen:
        here = some(one for one, p in layout.parameters.items() if p.shape.kind in STACKED)
        problems.append(
            f"target_parameters {shown(list(targets))} matches no parameter of the base "
            f"{layout.name}, which has {here or 'no experts'}"
        )
    by_owner: dict[str, list[str]] = {}
    for path, one in chosen.items():
        if path not in bad:
            by_owner.setdefault(one.owner, []).append(path)
    called = {
        owner + ".base_layer" * (len(paths) - 1 - depth): path
        for owner, paths in by_owner.items()
        for depth, path in enumerate(paths)
    }
    parameters = {path: chosen[path] for paths in by_owner.values() for path in paths}
    modules = {name: m for name, m in layout.modules.items() if name not in by_owner}
    modules |= {path: one.shape for path, one in parameters.items()}
    known = replace(layout, modules=modules, called=called)
    exchanged = frozenset(_find_exchanged(known, parameters, named, file, problems))
    turned = {path: _turned(modules[path]) for path in exchanged}
    shown_layout = replace(known, modules={**modules, **turned})
    return Known(shown_layout, parameters, {}, exchanged, named.columns)


def _turned(shape: BaseModule) -> BaseModule:
    return replace(shape, in_features=shape.out_features, out_features=shape.in_features)


def _find_exchanged(
    known: BaseLayout,
    parameters: Mapping[str, BaseParameter],
    named: NamedParameters,
    file: TensorFile,
    problems: list[str],
) -> Iterator[str]:
    unsure = []
    for key, entry in file.entries.items():
        module = module_of(_module(key), known) if ".lora_A." in key else None
        one = None if module is None else parameters.get(module.name)
        if one is None or one.shape.kind is not ModuleKind.EXPERTS or len(entry.shape) != 2:
            continue
        if one.shape.in_features != one.shape.out_features:
            exchanged = entry.shape[1] == one.shape.out_features
        elif one.transposed:
            exchanged = named.version == (0, 19, 0)
        elif named.version is None:
            exchanged = False
            unsure.append(one.shape.name)
        else:
            exchanged = named.version < _IN_PLACE
        if exchanged:
            yield one.shape.name
    if unsure:
        problems.append(
            "peft_version is missing: before 0.19.1 PEFT exchanged A and B of such parameters, and "
            f"the shapes do not show it if both dimensions are equal: {some(unsure)}"
        )


def peft_writes_now(version: object) -> bool:
    """Return whether files of this `peft_version` mean the same in the newest PEFT."""
    found = _version(version)
    return found is not None and found >= _IN_PLACE


def _version(value: object) -> tuple[int, ...] | None:
    found = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", str(value))
    return None if found is None else tuple(int(part) for part in found.groups())


def _matches(path: str, targets: tuple[str, ...]) -> bool:
    """Follow PEFT's rule, in which exclude_modules and layers_to_transform have no effect."""
    return any(path == target or path.endswith(f".{target}") for target in targets)


def _former(layout: BaseLayout) -> dict[str, Former]:
    found = {}
    for one in layout.parameters.values():
        width = one.shape.out_features // max(1, len(one.formerly))
        for place, pattern in enumerate(one.formerly):
            for expert in range(one.shape.experts):
                found[pattern.format(expert)] = Former(one, expert, place * width)
    return found


def _by_linear(layout: BaseLayout, former: Mapping[str, Former]) -> Known:
    owners = {one.parameter.owner for one in former.values()}
    modules = {name: m for name, m in layout.modules.items() if name not in owners}
    for name, one in former.items():
        shape = one.parameter.shape
        width = shape.out_features // len(one.parameter.formerly)
        modules[name] = BaseModule(name, ModuleKind.LINEAR, shape.in_features, width)
    return Known(replace(layout, modules=modules), {}, former)


def _module(key: str) -> str:
    """Return the module of a key with one of a LoRA's parameters."""
    return key.removeprefix(PREFIX).partition(".lora_")[0]


def _stacked(pair: LoraPair, experts: int) -> ExpertPairs:
    """Convert PEFT's two matrices of all experts."""
    rank = pair.a_RI.shape[0] // experts
    a_ERI = pair.a_RI.reshape(experts, rank, -1)
    b_EOR = pair.b_OR.reshape(-1, rank, experts).permute(2, 0, 1)
    return ExpertPairs(a_ERI, b_EOR, torch.full((experts,), pair.scaling))


def _exchanged(pair: LoraPair, experts: int) -> ExpertPairs:
    """Convert a pair whose A has the outputs and whose B has the inputs."""
    turned = _stacked(pair, experts)
    return ExpertPairs(turned.b_EOR.transpose(1, 2), turned.a_ERI.transpose(1, 2), turned.scaling_E)


def _one_on_the_other(pairs: Mapping[int, LoraPair], experts: int, start: int) -> ExpertPairs:
    """Stack the pairs of some experts' linears; the others' pairs are zero."""
    first = next(iter(pairs.values()))
    rank = max(pair.a_RI.shape[0] for pair in pairs.values())
    a_ERI = first.a_RI.new_zeros(experts, rank, first.a_RI.shape[1])
    b_EOR = first.b_OR.new_zeros(experts, first.b_OR.shape[0], rank)
    scaling_E = torch.zeros(experts)
    for expert, pair in pairs.items():
        mine = pair.a_RI.shape[0]
        a_ERI[expert, :mine] = pair.a_RI
        b_EOR[expert, :, :mine] = pair.b_OR
        scaling_E[expert] = pair.scaling
    return ExpertPairs(a_ERI, b_EOR, scaling_E, start)
