"""The names that adapters use for the text model of a base.

A model with a vision or audio part wraps a text model. transformers has changed the names of that
text model's modules, and a text model that is served alone has a third set of names:

    wrapper     model.language_model.layers.0    since transformers 4.52
    older       language_model.model.layers.0    before; its head is language_model.lm_head
    text        model.layers.0                   the text model by itself

The weights are the same, so an adapter with any of these names fits all three. `spelled` detects
the names from a file's keys and returns the base under those names, with its other parts if that
model has them. `Spelled.back` converts to the base's own names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lorry_adapters.lora.base import BaseLayout, BaseParameter
from lorry_adapters.lora.keys import bare_path

if TYPE_CHECKING:
    from lorry_adapters.lora.parts import Parts


class Spelling(StrEnum):
    """The path of the text model."""

    WRAPPER = "model.language_model"
    OLDER = "language_model.model"
    TEXT = "model"


HEAD: Final = "lm_head"
_OLDER_HEAD: Final = f"language_model.{HEAD}"
_AROUND: Final = "model."
"""The prefix of a wrapper's other parts, which had none before transformers 4.52."""
LANGUAGE: Final = "language_model."


@dataclass(frozen=True, slots=True)
class Spelled:
    """A base under an adapter's names."""

    layout: BaseLayout
    own: Mapping[str, str]
    """The base's own names, by the names in `layout`; empty if they are the same."""

    def back(self, parts: Parts) -> Parts:
        """Return `parts` under the base's own names."""
        if not self.own:
            return parts
        return replace(
            parts,
            pairs={self.own[name]: pair for name, pair in parts.pairs.items()},
            effects={self.own[name]: mine for name, mine in parts.effects.items()},
        )


def spelled(layout: BaseLayout, keys: Iterable[str]) -> Spelled:
    """Return the base under the names in `keys`, which are those of an adapter's file. If they are
    the base's own, unknown, or mixed, the base is returned as it is."""
    root = _root(layout)
    if root is None or layout.aliases:
        return Spelled(layout, {})
    parts = {
        name.removeprefix(f"{root}.").partition(".")[0]
        for name in layout.modules
        if name.startswith(f"{root}.")
    }
    found = set(spellings(keys, parts))
    if len(found) != 1 or root in found:
        return Spelled(layout, {})
    return _renamed(layout, root, found.pop())


def spellings(keys: Iterable[str], parts: Iterable[str] | None = None) -> Iterator[Spelling]:
    """Yield the spelling of every key of a text model. `parts` are the names at the top of such a
    model, or None if any name may be."""
    known = None if parts is None else frozenset(parts)
    for key in keys:
        path = bare_path(key)
        if path.startswith((f"{Spelling.OLDER}.", f"{_OLDER_HEAD}.")):
            yield Spelling.OLDER
        elif path.startswith((f"{Spelling.WRAPPER}.", LANGUAGE)):
            yield Spelling.WRAPPER
        # An adapter for hidden states omits the outermost `model`.
        elif known is not None and path.removeprefix(_AROUND).partition(".")[0] in known:
            yield Spelling.TEXT


def is_beside(layout: BaseLayout, module: str) -> bool:
    """Return whether a module of the base receives no text."""
    return bool(layout.text) and not (
        module == layout.output_embedding or f"{module}.".startswith(f"{layout.text}.")
    )


def _root(layout: BaseLayout) -> Spelling | None:
    """Return the base's own spelling of its text model."""
    path = (layout.input_embedding or "").rpartition(".")[0]
    return Spelling(path) if path in [*Spelling] else None


def _renamed(layout: BaseLayout, root: Spelling, new: Spelling) -> Spelled:
    def name(path: str) -> str | None:
        if path == root or path.startswith(f"{root}."):
            return new + path.removeprefix(root)
        if path == layout.output_embedding:
            return _OLDER_HEAD if new is Spelling.OLDER else path
        if new is Spelling.TEXT:
            return None
        return path.removeprefix(_AROUND) if new is Spelling.OLDER else path

    named = {path: new_path for path in layout.modules if (new_path := name(path)) is not None}
    parameters: dict[str, BaseParameter] = {}
    for path, one in layout.parameters.items():
        at, owner = name(path), name(one.owner)
        if at is not None and owner is not None:
            formerly = tuple(new_path for old in one.formerly if (new_path := name(old)))
            parameters[at] = replace(
                one, owner=owner, shape=replace(one.shape, name=at), formerly=formerly
            )
            named[one.owner] = owner
    modules = {
        named[path]: replace(module, name=named[path])
        for path, module in layout.modules.items()
        if path in named
    }
    table, head = layout.input_embedding, layout.output_embedding
    shown = replace(
        layout,
        modules=modules,
        parameters=parameters,
        input_embedding=None if table is None else named[table],
        output_embedding=None if head is None else named[head],
        text=new if layout.text else "",
    )
    return Spelled(shown, {new_path: path for path, new_path in named.items()})
