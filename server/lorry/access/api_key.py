"""An API key as data, and its text.

A key's text is `lorry-<id>-<secret>`. The id is public and finds the record; the secret is 256 bits
from the system's generator. Only the SHA-256 of the whole text is stored. A slow hash would protect
passwords that people choose, which can be guessed. 256 random bits cannot be guessed at any speed,
and a slow hash would cost every request its time.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Final

from lorry_adapters.registry.names import MAX_NAME, NAME_PREFIX
from lorry_adapters.registry.names import NAME as ADAPTER_NAME

PREFIX: Final = "lorry"

MAX_PATTERNS: Final = 1000
"""Names and prefixes in a key's list of adapters."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A key's name."""

_ID: Final = re.compile(r"[0-9a-f]{12}")


class Scope(StrEnum):
    """What a key is for."""

    GENERATE = "generate"
    """To send requests to the model."""
    UPLOAD = "upload"
    """To add, change, download and remove adapters."""
    ADMIN = "admin"
    """Everything, for every adapter: keys and the audit too."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Tokens of prompts and answers together."""
    concurrent_requests: int | None = None
    max_adapters: int | None = None
    """Adapters under the names of the key's list."""
    max_adapter_bytes: int | None = None
    """Bytes of all versions of those adapters."""
    max_scale: float | None = None
    """Largest magnitude of an adapter's scale, in requests and as its default."""
    max_rank: int | None = None
    weight: float | None = None
    """The key's share of the model while others wait, beside the 1 that a key has without it."""

    def given(self) -> dict[str, int | float]:
        """Return the limits that are set, by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key without its secret."""

    id: str
    name: str
    scopes: frozenset[Scope]
    adapters: tuple[str, ...] | None = None
    """Names, and prefixes that end in `*`; None is every adapter."""
    limits: KeyLimits = field(default_factory=KeyLimits)
    description: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    """None for the key of the settings."""

    def may(self, wanted: Iterable[Scope]) -> bool:
        """Return whether it has one of the scopes."""
        return Scope.ADMIN in self.scopes or not self.scopes.isdisjoint(wanted)

    def sees(self, adapter: str) -> bool:
        """Return whether the adapter is in its list."""
        return self.adapters is None or any(_matches(one, adapter) for one in self.adapters)


def new_secret(id: str) -> str:
    """Return the text of a new key."""
    return f"{PREFIX}-{id}-{secrets.token_hex(32)}"


def new_id() -> str:
    return secrets.token_hex(6)


def id_in(text: bytes) -> str | None:
    """Return the id in a key's text; None if it has not the form of a key."""
    parts = text.decode("ascii", "replace").split("-")
    if len(parts) != 3 or parts[0] != PREFIX or _ID.fullmatch(parts[1]) is None:
        return None
    return parts[1]


def digest_of_key(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def check_pattern(text: str) -> str:
    """Return an adapter's name or a prefix such as `legal-*`. Raises ValueError."""
    form = NAME_PREFIX if text.endswith("*") else ADAPTER_NAME
    if len(text) > MAX_NAME + 1 or form.fullmatch(text.removesuffix("*")) is None:
        raise ValueError(text)
    return text


def _matches(pattern: str, adapter: str) -> bool:
    if pattern.endswith("*"):
        return adapter.startswith(pattern[:-1])
    return adapter == pattern
