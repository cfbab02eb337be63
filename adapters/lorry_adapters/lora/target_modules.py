"""The modules of a base that an adapter's config selects.

The rules are PEFT's own, `check_target_module_exists` and `_maybe_include_all_linear_layers`
of peft 0.21. The tests compare both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.patterns import Budget, Pattern

_ALL_LINEAR: Final = "all-linear"

_SHORTENED: Final = 20
"""From this many targets on, PEFT replaces them by the shortest unambiguous suffixes."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Created by `read_targets` only."""

    target_modules: tuple[str, ...] | str
    """Names (whole, or dotted suffixes), or one regular expression, or `all-linear`."""
    exclude_modules: tuple[str, ...] | str
    layers_to_transform: frozenset[int] | None
    layers_pattern: tuple[str, ...]
    headless: bool
    """True if names are those of the model below its head."""
    _target: Pattern | frozenset[str] | None = field(repr=False, compare=False)
    """None: all-linear."""
    _exclude: Pattern | frozenset[str] = field(repr=False, compare=False)

    def select(self, layout: BaseLayout, budget: Budget | None = None) -> tuple[BaseModule, ...]:
        """Return the modules of the base that PEFT would wrap, of any kind, in the layout's order.

        Raises InvalidAdapter if the config's expressions cost more than `budget`.
        """
        budget = Budget() if budget is None else budget
        return tuple(m for m in layout.modules.values() if _is_targeted(self, m, layout, budget))


def read_targets(fields: Fields, *, optional: bool = False) -> Targets:
    """Take `target_modules` and the fields that restrict it; problems are added to `fields`.

    `optional`: there may be none, if other fields define what the adapter changes.
    """
    targets = fields.take("target_modules", check.names, ())
    exclude = fields.take("exclude_modules", check.names, ())
    layers = fields.take("layers_to_transform", check.indices, None)
    pattern = fields.take("layers_pattern", check.plain_names, ())
    _check(fields, targets, layers, pattern, optional)
    target = _matcher(fields, "target_modules", targets)
    excluded = _matcher(fields, "exclude_modules", exclude, regex=True)
    assert excluded is not None
    headless = fields.raw("task_type") == "FEATURE_EXTRACTION"
    return Targets(targets, exclude, layers, pattern, headless, target, excluded)


def _check(
    fields: Fields,
    targets: tuple[str, ...] | str,
    layers: frozenset[int] | None,
    pattern: tuple[str, ...],
    optional: bool,
) -> None:
    if not targets and (optional or fields.complains_of("target_modules")):
        return
    if not targets:
        fields.problems.append(
            "target_modules names no module: list those that the adapter was trained on"
        )
    elif isinstance(targets, str):
        if layers is not None:
            fields.problems.append(
                "layers_to_transform cannot be combined with target_modules as one string"
            )
    elif (
        # Whether a whole path overrides layers_to_transform then depends on PEFT's version: it
        # may have been shortened to a suffix, which does not.
        layers is not None
        and len(targets) >= _SHORTENED
        and any(re.search(r"\.\d+\.", target) for target in targets)
    ):
        fields.problems.append(
            "target_modules names modules of single layers and layers_to_transform "
            "layers again: leave one of the two out"
        )
    if pattern and fields.raw("layers_to_transform") is None:
        fields.problems.append("layers_pattern is set, but layers_to_transform is not")


def _matcher(
    fields: Fields, key: str, value: tuple[str, ...] | str, *, regex: bool = False
) -> Pattern | frozenset[str] | None:
    if not isinstance(value, str):
        return frozenset(value)
    if value.lower() == _ALL_LINEAR and not regex:
        return None
    if not value:
        return frozenset()
    try:
        return Pattern(value, where=key)
    except InvalidAdapter as error:
        fields.problems.extend(error.problems)
        return frozenset()


def _is_targeted(targets: Targets, module: BaseModule, layout: BaseLayout, budget: Budget) -> bool:
    name = module.name
    if targets.headless:
        if not name.startswith(f"{layout.body}."):
            return False
        name = name.removeprefix(f"{layout.body}.")
    if isinstance(targets._exclude, Pattern):
        if targets._exclude.matches(name, budget):
            return False
    elif _listed(targets._exclude, name):
        return False
    if targets._target is None:
        linear = module.kind in (ModuleKind.LINEAR, ModuleKind.CONV1D)
        return linear and module.name != layout.output_embedding
    if isinstance(targets._target, Pattern):
        return targets._target.matches(name, budget)
    if name in targets._target:
        return True
    if not _listed(targets._target, name):
        return False
    return (
        targets.layers_to_transform is None
        or _layer_of(targets, name) in targets.layers_to_transform
    )


def _listed(names: frozenset[str], module: str) -> bool:
    """Return whether the module's path, or a part of it after a dot, is among `names`."""
    if module in names:
        return True
    dot = module.find(".")
    while dot >= 0:
        if module[dot + 1 :] in names:
            return True
        dot = module.find(".", dot + 1)
    return False


def _layer_of(targets: Targets, name: str) -> int | None:
    # The first number counts, not the last: an expert's index is not a layer's.
    if not targets.layers_pattern:
        found = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", name)
        return int(found["index"]) if found else None
    for pattern in targets.layers_pattern:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", name)
        if found:
            return int(found["index"])
    return None
