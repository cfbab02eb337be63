"""The definition of a setting: its possible values, and how they are read from text.

The table of settings itself is `lorry.settings`.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import MISSING, Field, dataclass, field
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from lorry.errors import SettingsError
from lorry.hostname import (
    allowed_host,
    allowed_origin,
    allowed_resolver,
    allowed_source,
    store_url,
    url_prefix,
)

PREFIX = "LORRY_"


class Kind(StrEnum):
    """The kinds of values."""

    TEXT = "text"
    CHOICE = "choice"
    INT = "whole number"
    FLOAT = "number"
    BOOL = "true or false"
    SIZE = "size"
    PATH = "path"
    PATHS = "paths"
    HOSTS = "hosts"
    ORIGINS = "origins"
    URL_PATH = "path of a URL"
    NETWORKS = "networks"
    SOURCES = "sources"
    STORE = "URL of a store"
    RESOLVERS = "resolvers"


@dataclass(frozen=True, slots=True)
class Option:
    """One setting for the command line, the environment, a file and the docs."""

    name: str
    """Field of `Settings`, and key in a settings file."""
    kind: Kind
    help: str
    default: object
    default_text: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    secret: bool = False
    """True if it is never shown, not even in an error."""
    positional: bool = False

    @property
    def flag(self) -> str:
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")

    @property
    def negative_flag(self) -> str | None:
        return "--no-" + self.name.replace("_", "-") if self.kind is Kind.BOOL else None

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def allowed(self) -> str:
        """The possible values, for people."""
        if self.kind is Kind.CHOICE:
            return "one of " + ", ".join(self.choices)
        if self.kind is Kind.SIZE:
            return "a size such as 512MiB or 2GiB"
        if self.kind is Kind.TEXT:
            return "text that is not empty"
        if self.kind is Kind.PATHS:
            return f"folders, separated by {os.pathsep!r} (a list in a file)"
        if self.kind is Kind.PATH:
            return "a path"
        if self.kind is Kind.NETWORKS:
            return "addresses or networks such as 10.0.0.0/8, separated by ',' (a list in a file)"
        if self.kind is Kind.SOURCES:
            return (
                "hosts such as files.example.com, *.hf.co or 10.0.0.1:8443, networks such as "
                "10.0.0.0/8, and buckets such as s3://bucket/prefix, separated by ',' (a list in a "
                "file)"
            )
        if self.kind is Kind.RESOLVERS:
            return (
                "hub, hub:org, or the https, s3 or gs URL of a place, separated by ',' (a list in "
                "a file)"
            )
        if self.kind is Kind.STORE:
            return "the URL of a store, such as s3://bucket/prefix or file:///srv/adapters"
        if self.kind is Kind.URL_PATH:
            return "the path of a URL, such as /llm"
        if self.kind is Kind.ORIGINS:
            return (
                "origins such as https://app.example.com, without a path, separated by ',' (a "
                "list in a file); * is any"
            )
        if self.kind is Kind.HOSTS:
            return (
                "names or addresses without ports, separated by ',' (a list in a file); "
                "*.example.com is all below a name, * is any"
            )
        bounds = ""
        if self.minimum is not None and self.maximum is not None:
            bounds = f" from {self.minimum:g} to {self.maximum:g}"
        elif self.minimum is not None:
            bounds = f", {self.minimum:g} or more"
        return ("" if self.kind is Kind.BOOL else "a ") + self.kind.value + bounds


def setting(
    default: object,
    kind: Kind,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
    positional: bool = False,
    default_text: str | None = None,
) -> Any:
    """Return a field of the settings. A `default` that can be called makes it."""
    metadata = {
        "kind": kind,
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "secret": secret,
        "positional": positional,
        "default_text": default_text,
    }
    if callable(default):
        return field(default_factory=default, repr=not secret, metadata=metadata)
    return field(default=default, repr=not secret, metadata=metadata)


def option_of(item: Field[Any]) -> Option:
    """Return the option that a field's metadata describes."""
    default = item.default if item.default_factory is MISSING else item.default_factory()
    metadata = dict(item.metadata)
    text = metadata.pop("default_text")
    if text is None:
        text = str(default).lower() if isinstance(default, bool) else str(default)
    return Option(name=item.name, default=default, default_text=text, **metadata)


def parse(option: Option, raw: object, source: str) -> object:
    """Convert `raw` (text, or a file's own type). Raises SettingsError, which names `source`."""
    try:
        value = _convert(option.kind, raw)
    except (ValueError, TypeError):
        raise _refusal(option, raw, source) from None
    if option.choices and value not in option.choices:
        raise _refusal(option, raw, source)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if option.minimum is not None and value < option.minimum:
            raise _refusal(option, raw, source)
        if option.maximum is not None and value > option.maximum:
            raise _refusal(option, raw, source)
    return value


def parse_size(text: str) -> int:
    """Return the bytes of `512MiB`, `2 GiB`, `1.5GB` or `4096`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B|B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(text)
    number, unit, binary = match.groups()
    power = " KMGT".index(unit.upper()) if unit else 0
    size = float(number) * (1024 if binary else 1000) ** power
    if size != int(size) and not unit:
        raise ValueError(text)
    return int(size)


def format_size(count: int) -> str:
    """Format `count` bytes for people: `93.1 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _convert(kind: Kind, raw: object) -> object:
    if isinstance(raw, str) and not raw.strip():
        raise ValueError("empty")
    match kind:
        case Kind.TEXT | Kind.CHOICE:
            if not isinstance(raw, str):
                raise TypeError
            return raw.strip()
        case Kind.BOOL:
            if isinstance(raw, bool):
                return raw
            words = {"true": True, "1": True, "yes": True, "on": True}
            words |= {"false": False, "0": False, "no": False, "off": False}
            word = raw.strip().lower() if isinstance(raw, str) else ""
            if word not in words:
                raise ValueError
            return words[word]
        case Kind.INT:
            if isinstance(raw, bool) or not isinstance(raw, int | str):
                raise TypeError
            return int(raw)
        case Kind.FLOAT:
            if isinstance(raw, bool) or not isinstance(raw, int | float | str):
                raise TypeError
            number = float(raw)
            if not math.isfinite(number):
                raise ValueError
            return number
        case Kind.SIZE:
            if isinstance(raw, int) and not isinstance(raw, bool):
                return raw
            if not isinstance(raw, str):
                raise TypeError
            return parse_size(raw)
        case Kind.PATH:
            return _path(raw)
        case Kind.PATHS:
            items = raw.split(os.pathsep) if isinstance(raw, str) else raw
            if not isinstance(items, list | tuple):
                raise TypeError
            return tuple(_path(item) for item in items)
        case Kind.HOSTS:
            return tuple(allowed_host(item) for item in _items(raw))
        case Kind.ORIGINS:
            return tuple(allowed_origin(item) for item in _items(raw))
        case Kind.SOURCES:
            return tuple(allowed_source(item) for item in _items(raw))
        case Kind.STORE:
            if not isinstance(raw, str):
                raise TypeError
            return store_url(raw)
        case Kind.RESOLVERS:
            return tuple(allowed_resolver(item) for item in _items(raw))
        case Kind.URL_PATH:
            if not isinstance(raw, str):
                raise TypeError
            return url_prefix(raw)
        case Kind.NETWORKS:
            return tuple(str(ip_network(item.strip(), strict=False)) for item in _items(raw))


def _items(raw: object) -> list[str]:
    """Read `a, b` from a flag or a variable, or a list of strings from a file."""
    items = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise TypeError
    return list(items)


def _path(raw: object) -> Path:
    if not isinstance(raw, str | Path) or not str(raw).strip():
        raise TypeError
    return Path(raw).expanduser().absolute()


def _refusal(option: Option, raw: object, source: str) -> SettingsError:
    shown = "this value" if option.secret else repr(raw)
    return SettingsError(f"{source}: {shown} is not allowed; give {option.allowed}")
