"""Sorts the fields of a body: those for its schema, those to ignore, those to refuse."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

from lorry.api import fields
from lorry.api.fields import Strays
from lorry.api.mistakes import too_many

_MANY: Final = 100
"""A number of unknown fields that no real client sends and nobody would look up."""


class Unused:
    """Marks a field of a schema that is accepted and has no effect on the answer."""


class Listed:
    """Marks a field that is a list of objects whose unknown keys are sorted too. `keys` are the
    keys that are read."""

    def __init__(self, keys: Collection[str]) -> None:
        self.keys = frozenset(keys)


@dataclass(slots=True)
class Sifted:
    kept: dict[str, Any]
    ignored: list[str] = field(default_factory=list)
    """Paths: `user`, `stream_options.x`, `messages.annotations`."""
    refused: dict[str, str] = field(default_factory=dict)
    """Messages by path."""


def sift(kind: type[BaseModel], data: dict[str, Any]) -> Sifted:
    """Sort the fields of `data`, which is not changed. Raises InvalidFields if there are too
    many."""
    sifted = Sifted(data)
    sifted.kept = _sift(kind, data, "", sifted)
    return sifted


def _sift(kind: type[BaseModel], data: dict[str, Any], prefix: str, into: Sifted) -> dict[str, Any]:
    served = kind.model_fields
    how = getattr(kind, "strays", Strays.REFUSED)
    if how is Strays.REFUSED:
        return data
    unknown = [name for name in data if name not in served]
    if len(unknown) > _MANY:
        raise too_many(len(unknown))
    for name in unknown:
        place = f"{prefix}{name[:200]}"
        problem = fields.refusal(name, data[name], place, served, how)
        _note(into, place, problem)
    kept = {name: value for name, value in data.items() if name in served}
    plan = _plan(kind)
    for name in plan.unused & kept.keys():
        if kept[name] is not None:
            into.ignored.append(f"{prefix}{name}")
    for name, inner in plan.objects.items():
        if isinstance(kept.get(name), dict):
            kept[name] = _sift(inner, kept[name], f"{prefix}{name}.", into)
    for name, keys in plan.lists.items():
        if isinstance(kept.get(name), list):
            kept[name] = _items(kept[name], keys, f"{prefix}{name}", into)
    return kept


def _items(items: list[Any], keys: frozenset[str], name: str, into: Sifted) -> list[Any]:
    seen: set[str] = set()
    result = []
    for index, item in enumerate(items):
        strays = [key for key in item if key not in keys] if isinstance(item, dict) else []
        if strays:
            seen.update(strays)
            if len(seen) > _MANY:
                raise too_many(len(seen))
            for key in strays:
                place = f"{name}[{index}].{key[:200]}"
                problem = fields.refusal_in_message(key, item[key], place, keys)
                _note(into, f"{name}.{key}" if problem is None else place, problem)
            item = {key: value for key, value in item.items() if key in keys}
        result.append(item)
    return result


def _note(into: Sifted, place: str, problem: str | None) -> None:
    if problem is None:
        into.ignored.append(place)
    else:
        into.refused[place] = problem


@dataclass(frozen=True, slots=True)
class _Plan:
    """The fields of a schema that need sorting themselves."""

    unused: frozenset[str]
    objects: Mapping[str, type[BaseModel]]
    lists: Mapping[str, frozenset[str]]


@cache
def _plan(kind: type[BaseModel]) -> _Plan:
    unused, objects, lists = set(), {}, {}
    for name, info in kind.model_fields.items():
        for mark in (*info.metadata, *_marks(info.annotation)):
            if isinstance(mark, Unused):
                unused.add(name)
            if isinstance(mark, Listed):
                lists[name] = mark.keys
        inner = _model_in(info.annotation)
        if inner is not None:
            objects[name] = inner
    return _Plan(frozenset(unused), objects, lists)


def _marks(annotation: object) -> Iterator[object]:
    """Yield the marks of `Annotated[X, mark] | None`, which pydantic leaves in the annotation."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        yield from marks
        yield from _marks(inner)
    elif get_origin(annotation) in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _marks(one)


def _model_in(annotation: object) -> type[BaseModel] | None:
    """Return the schema of `X`, `X | None` and their annotated forms."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        found = [_model_in(one) for one in get_args(annotation)]
        return next((one for one in found if one is not None), None)
    return None
