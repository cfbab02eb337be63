"""What a LoRA adapter asks for, and which modules of a base that concerns.

The rules are PEFT's own, `check_target_module_exists`, `get_pattern_key` and
`_maybe_include_all_linear_layers` of peft 0.21, and the tests hold the two together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.patterns import Budget, Pattern, SuffixRules


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """One adapter's config, checked. Built by `lorry_adapters.lora.config.parse_config` only."""

    peft_type: str
    base_model: str | None
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    """In the config's order: the first that matches a module wins."""
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str
    """Names (whole, or dotted suffixes), or one regular expression, or `all-linear`."""
    exclude_modules: tuple[str, ...] | str
    layers_to_transform: frozenset[int] | None
    layers_pattern: tuple[str, ...]
    fan_in_fan_out: bool
    """How the base stores its weights; says nothing of A and B, so nothing here reads it."""
    _target: Pattern | frozenset[str] | None = field(repr=False, compare=False)
    """None: all-linear."""
    _exclude: Pattern | frozenset[str] = field(repr=False, compare=False)
    _ranks: SuffixRules[int] = field(repr=False, compare=False)
    _alphas: SuffixRules[float] = field(repr=False, compare=False)

    def rank_of(self, module: str, budget: Budget | None = None) -> int:
        """The rank of `module`, a dotted path of the base."""
        budget = Budget() if budget is None else budget
        rank = self._ranks.find(module, budget)
        return self.r if rank is None else rank

    def scaling_of(self, module: str, budget: Budget | None = None) -> float:
        """What multiplies B·A·x at scale 1: alpha/r, or alpha/sqrt(r) for rsLoRA."""
        budget = Budget() if budget is None else budget
        rank = self.rank_of(module, budget)
        alpha = self._alphas.find(module, budget)
        alpha = self.lora_alpha if alpha is None else alpha
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def targeted(
    spec: AdapterSpec, layout: BaseLayout, budget: Budget | None = None
) -> tuple[BaseModule, ...]:
    """The modules of the base that PEFT would wrap, of any kind, in the layout's order.

    Raises InvalidAdapter when the config's expressions cost more than `budget`.
    """
    budget = Budget() if budget is None else budget
    return tuple(m for m in layout.modules.values() if _is_targeted(spec, m, layout, budget))


def _is_targeted(spec: AdapterSpec, module: BaseModule, layout: BaseLayout, budget: Budget) -> bool:
    name = module.name
    if isinstance(spec._exclude, Pattern):
        if spec._exclude.matches(name, budget):
            return False
    elif _listed(spec._exclude, name):
        return False
    if spec._target is None:
        linear = module.kind in (ModuleKind.LINEAR, ModuleKind.CONV1D)
        return linear and name != layout.output_embedding
    if isinstance(spec._target, Pattern):
        return spec._target.matches(name, budget)
    if name in spec._target:
        return True
    if not _listed(spec._target, name):
        return False
    return spec.layers_to_transform is None or _layer_of(spec, name) in spec.layers_to_transform


def _listed(names: frozenset[str], module: str) -> bool:
    """The module's path, or what follows one of its dots, is among `names`."""
    if module in names:
        return True
    dot = module.find(".")
    while dot >= 0:
        if module[dot + 1 :] in names:
            return True
        dot = module.find(".", dot + 1)
    return False


def _layer_of(spec: AdapterSpec, name: str) -> int | None:
    # The first number counts, not the last: an expert's index is none of a layer's.
    if not spec.layers_pattern:
        found = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", name)
        return int(found["index"]) if found else None
    for pattern in spec.layers_pattern:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", name)
        if found:
            return int(found["index"])
    return None
