"""The text model of a base, under the names that adapters have for it.

A model with a vision or audio part wraps a text model. What transformers calls that one's modules
has changed, and a text model that is served alone has a third name for them:

    wrapper     model.language_model.layers.0    since transformers 4.52
    older       language_model.model.layers.0    before; its head is language_model.lm_head
    text        model.layers.0                   the text model by itself

The weights are the same, so an adapter of any of them fits them all. The keys of a file tell
whose names it has: `spelled` shows the base as such an adapter knows it, with its other parts
where that model has them, and leads back to the base's own names.
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
    """By the path of the text model."""

    WRAPPER = "model.language_model"
    OLDER = "language_model.model"
    TEXT = "model"


HEAD: Final = "lm_head"
_OLDER_HEAD: Final = f"language_model.{HEAD}"
_AROUND: Final = "model."
"""Where a wrapper has its other parts; before transformers 4.52 they stood by themselves."""
LANGUAGE: Final = "language_model."


@dataclass(frozen=True, slots=True)
class Spelled:
    """A base as an adapter knows it."""

    layout: BaseLayout
    own: Mapping[str, str]
    """The base's own names, by those of `layout`; empty where they are the same."""

    def back(self, parts: Parts) -> Parts:
        """`parts` by the base's own names."""
        if not self.own:
            return parts
        return replace(
            parts,
            pairs={self.own[name]: pair for name, pair in parts.pairs.items()},
            effects={self.own[name]: mine for name, mine in parts.effects.items()},
        )


def spelled(layout: BaseLayout, keys: Iterable[str]) -> Spelled:
    """`keys` of an adapter's file. Where they are of the base's own names, of none that is known,
    or of more than one, the base is shown as it is."""
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
    """Of every key of a text model. `parts`: what such a model has at its top; None: whatever it
    may be."""
    known = None if parts is None else frozenset(parts)
    for key in keys:
        path = bare_path(key)
        if path.startswith((f"{Spelling.OLDER}.", f"{_OLDER_HEAD}.")):
            yield Spelling.OLDER
        elif path.startswith((f"{Spelling.WRAPPER}.", LANGUAGE)):
            yield Spelling.WRAPPER
        # Of an adapter for hidden states the outermost `model` is left out.
        elif known is not None and path.removeprefix(_AROUND).partition(".")[0] in known:
            yield Spelling.TEXT


def is_beside(layout: BaseLayout, module: str) -> bool:
    """A module of the base's own that no text reaches."""
    return bool(layout.text) and not (
        module == layout.output_embedding or f"{module}.".startswith(f"{layout.text}.")
    )


def _root(layout: BaseLayout) -> Spelling | None:
    """What the base itself calls its text model."""
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
