"""Adapters for modules that the base has under other names, or as several parts.

A low-rank delta is B A x. If the module's outputs are now those of several modules side by side,
each of them needs the same A and its own rows of B. The same applies to other effects with one
number per output.

`as_named` adds the former names of a model class if a file uses them, `foreign` returns the base
under such an adapter's names, and `resolve` converts the tensors to the base's own modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lorry_adapters.lora.base import AliasPart, BaseLayout, BaseModule
from lorry_adapters.lora.expert_effects import AnyEffect
from lorry_adapters.lora.problems import shown

_FORMER: Final[Mapping[str, Mapping[str, str]]] = {"GPTNeoXForCausalLM": {"embed_out": "lm_head"}}
"""transformers' names of modules before its version 5, by the model's class."""

if TYPE_CHECKING:
    from lorry_adapters.lora.parts import LoraPair, Parts


def split(pair: LoraPair, alias: Sequence[AliasPart]) -> dict[str, LoraPair]:
    """Split `pair` into the parts of `alias`, which share its memory. Return them by the base's
    module.

    `b_OR` must have a row for every output of the alias.
    """
    assert alias[0].start == 0 and alias[-1].stop == pair.b_OR.shape[0]
    return {
        part.module: type(pair)(pair.a_RI, pair.b_OR[part.start : part.stop], pair.scaling)
        for part in alias
    }


def as_named(layout: BaseLayout, keys: Iterable[str]) -> BaseLayout:
    """Return `layout` with aliases for those former names of its modules that `keys` contain."""
    former = _FORMER.get(layout.architecture, {})
    parts = {part for key in keys for part in key.split(".")} if former else set()
    found = {
        old: (AliasPart(new, 0, layout.modules[new].out_features),)
        for old, new in former.items()
        if old in parts and new in layout.modules
    }
    return replace(layout, aliases={**layout.aliases, **found}) if found else layout


def foreign(layout: BaseLayout) -> BaseLayout:
    """Return the base with its aliases instead of the modules behind them."""
    if not layout.aliases:
        return layout
    hidden = {part.module for alias in layout.aliases.values() for part in alias}
    new = {alias[0].module: name for name, alias in layout.aliases.items() if len(alias) == 1}
    modules = {name: m for name, m in layout.modules.items() if name not in hidden}
    for name, alias in layout.aliases.items():
        first = layout.modules[alias[0].module]
        biased = any(layout.modules[part.module].bias for part in alias)
        modules[name] = BaseModule(name, first.kind, first.in_features, alias[-1].stop, biased)

    def renamed(path: str | None) -> str | None:
        return None if path is None else new.get(path, path)

    return replace(
        layout,
        modules=modules,
        input_embedding=renamed(layout.input_embedding),
        output_embedding=renamed(layout.output_embedding),
        aliases={},
    )


def resolve(parts: Parts, layout: BaseLayout, problems: list[str]) -> Parts:
    """Return `parts` by the base's own modules. Effects that cannot be split are added to
    `problems`."""
    if not layout.aliases:
        return parts
    pairs: dict[str, LoraPair] = {}
    for name, pair in parts.pairs.items():
        alias = layout.aliases.get(name)
        pairs.update({name: pair} if alias is None else split(pair, alias))
    effects: dict[str, list[AnyEffect]] = {}
    for name, mine in parts.effects.items():
        for part in layout.aliases.get(name, (AliasPart(name, 0, -1),)):
            whole = len(layout.aliases.get(name, ())) < 2
            for effect in mine:
                cut = effect if whole else effect.cut(part.start, part.stop)
                if cut is None:
                    problems.append(
                        f"{type(effect).__name__} is not served on {shown(name)}, which this base "
                        "computes in parts"
                    )
                else:
                    effects.setdefault(part.module, []).append(cut)
    return replace(parts, pairs=pairs, effects=effects)
