"""Parses the adapter spec of a request into `AdapterChoice`s.

    null | "legal" | "legal@3" | {"name": "legal", "scale": 0.7} | [spec, spec, ...]

Only the form is checked here; the registry checks names, versions and state.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import WithJsonSchema

from lorry.errors import InvalidRequest, ModelNotFound
from lorry_adapters.errors import InvalidSelection, UnknownAdapter
from lorry_adapters.registry.names import check_scale, nearest
from lorry_adapters.registry.record import MAX_SCALE, MAX_SELECTION, AdapterChoice
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.version_rules import LABEL

_ONE: dict[str, Any] = {
    "anyOf": [
        {
            "type": "string",
            "description": "A name or an alias, or name@version",
            "pattern": f"^[^@]+(@([0-9]{{0,17}}[1-9][0-9]{{0,17}}|{LABEL.pattern}))?$",
        },
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "version": {"type": "integer", "minimum": 1},
                "scale": {"type": "number", "minimum": -MAX_SCALE, "maximum": MAX_SCALE},
            },
            "required": ["name"],
            "additionalProperties": False,
        },
    ]
}

AdapterField = Annotated[
    Any,
    WithJsonSchema(
        {
            "title": "Adapter spec",
            "description": "null is the base model; a list is summed, each with its scale.",
            "anyOf": [
                {"type": "null"},
                *_ONE["anyOf"],
                {"type": "array", "items": _ONE, "maxItems": MAX_SELECTION},
            ],
        }
    ),
]
"""A field that takes an adapter spec; `choices_of` reads it."""

User = Annotated[
    Any,
    WithJsonSchema(
        {
            "title": "User",
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "description": "Whoever asks: in a trial, one user gets one version of an adapter.",
        }
    ),
]
"""A field that `keyed` takes."""

_KEYS = ("name", "version", "scale")

PLACEHOLDERS = frozenset({"tgi", "dummy"})
"""The `model` that Hugging Face's clients send to a server with a single model."""


@dataclass(frozen=True, slots=True)
class BaseNames:
    """The base's names."""

    first: str
    """The name in answers, and as the parent of adapters."""
    others: tuple[str, ...] = ()
    """Other served names."""
    repository: str | None = None
    """Its id on a hub, which is accepted but not listed."""

    def __contains__(self, name: object) -> bool:
        return name == self.first or name in self.others or name == self.repository


def choices_of(spec: object, field: str = "adapter") -> tuple[AdapterChoice, ...]:
    """Parse a spec. `field` is its path. Raises InvalidSelection, InvalidScale."""
    if spec is None:
        return ()
    if not isinstance(spec, list):
        return (_choice(spec, field, field),)
    if len(spec) > MAX_SELECTION:
        raise InvalidSelection(
            f"{field} lists {len(spec)} adapters, the most is {MAX_SELECTION}", param=field
        )
    return tuple(_choice(one, f"{field}[{index}]", field) for index, one in enumerate(spec))


def choices_of_model(
    model: str | None, base: BaseNames, registry: Registry
) -> tuple[AdapterChoice, ...]:
    """Return the selection of OpenAI's `model`: empty for the base. Raises ModelNotFound."""
    if model is None or model in base:
        return ()
    try:
        choice = _named(model, "model", "model")
        registry.get(choice.name)
    except (InvalidSelection, UnknownAdapter) as error:
        # An adapter may have that name.
        if model in PLACEHOLDERS:
            return ()
        raise not_found(model, base, error) from error
    try:
        registry.resolve(choice)
    except UnknownAdapter as error:
        raise ModelNotFound(f"model {model[:200]!r}: {error}") from error
    return (choice,)


def keyed(
    choices: tuple[AdapterChoice, ...], user: object, seed: int | None
) -> tuple[AdapterChoice, ...]:
    """Return the choices with the key that draws the versions of a split: the user's if there is
    one, or the seed's. Without either, each request draws."""
    key = f"user {user}" if isinstance(user, str) and user else None
    if key is None and seed is not None:
        key = f"seed {seed}"
    return choices if key is None else tuple(replace(choice, key=key) for choice in choices)


def not_found(model: str, base: BaseNames, error: Exception | None = None) -> ModelNotFound:
    """`error` says why it is not an adapter."""
    meant = getattr(error, "meant", None) or nearest(model, (base.first, *base.others))
    hint = "" if meant is None else f"did you mean {meant!r}? "
    return ModelNotFound(
        f"model {model[:200]!r} is neither the base ({base.first!r}) nor an adapter; {hint}"
        "GET /v1/models lists them"
    )


def same(one: object, other: object) -> bool:
    """Return whether two specs ask for the same."""
    return choices_of(one) == choices_of(other)


def _choice(spec: object, where: str, field: str) -> AdapterChoice:
    if isinstance(spec, str):
        return _named(spec, where, field)
    if not isinstance(spec, dict):
        raise InvalidSelection(
            f'{where} must be a name, {{"name": ..., "scale": ...}} or a list of those, '
            f"not {json.dumps(spec)[:80]}",
            param=field,
        )
    unknown = [key for key in spec if key not in _KEYS]
    if unknown:
        raise InvalidSelection(
            f"{where} has an unknown key {unknown[0][:80]!r}; it takes {', '.join(_KEYS)}",
            param=field,
        )
    name = spec.get("name")
    if not isinstance(name, str):
        raise InvalidSelection(f"{where}.name must be an adapter's name", param=field)
    choice = _named(name, f"{where}.name", field)
    version = spec.get("version")
    if version is not None:
        # JSON does not distinguish `3.0` from `3`.
        if isinstance(version, float) and version.is_integer():
            version = int(version)
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise InvalidSelection(
                f"{where}.version must be a whole number from 1, not {json.dumps(version)[:80]}",
                param=field,
            )
        if choice.version not in (None, version):
            raise InvalidSelection(
                f"{where} names version {choice.version} and version {version}", param=field
            )
    scale = spec.get("scale")
    return AdapterChoice(
        name=choice.name,
        version=choice.version if version is None else version,
        scale=None if scale is None else check_scale(scale, f"{where}.scale"),
    )


def _named(text: str, where: str, field: str) -> AdapterChoice:
    name, at, version = text.partition("@")
    if not name:
        raise InvalidSelection(f"{where} is empty; leave it out for the base model", param=field)
    if not at:
        return AdapterChoice(name)
    if LABEL.fullmatch(version):
        return AdapterChoice(text)
    # No version has more than 18 digits, and SQL has no number for it.
    if not (version.isascii() and version.isdigit() and len(version) < 19 and int(version)):
        raise InvalidSelection(
            f"{where}: {version[:80]!r} is not a version; write {name[:80]}@3, or the name alone",
            param=field,
        )
    return AdapterChoice(name, int(version))


def one_of(adapter: object, alias: object) -> object:
    """Return `adapter` or its alias `adapter_id`. Raises InvalidRequest if they differ."""
    if alias is None:
        return adapter
    if adapter is not None and not same(adapter, alias):
        raise InvalidRequest(
            "adapter and parameters.adapter_id are both given and differ; give one",
            param="adapter_id",
        )
    return alias if adapter is None else adapter
