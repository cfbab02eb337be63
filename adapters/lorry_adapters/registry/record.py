"""The records of the registry: plain data, with no behaviour except releasing a lease."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

MAX_SCALE = 16.0
"""Largest magnitude of a scale. Beyond it an adapter produces nothing but noise."""

MERGED = "(merged)"
"""The name of an adapter that a request merged from others. No adapter can have this name."""

MAX_SELECTION = 8
"""Largest number of adapters that one request may sum."""


class StorageTier(StrEnum):
    """Where an adapter's weights are. The nearest place counts."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


def _random_key() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """An adapter as a request names it. It was not looked up yet."""

    name: str
    """Of the adapter, or an alias."""
    version: int | None = None
    """None: the current one, or one that is drawn by `key` if the name means several."""
    scale: float | None = None
    """None: the adapter's default scale."""
    digest: str | None = None
    """The content itself, if it has no name. Only `Registry.merged` sets it."""
    key: str = field(default_factory=_random_key, compare=False)
    """Choices with the same key get the same version of a split."""


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter as a request uses it, fixed from acceptance to the last token."""

    name: str
    version: int
    digest: str
    """The identity of the content: `sha256:` and 64 hexadecimal digits."""
    scale: float
    """Multiplies the trained strength. 0 is exactly the base model."""
    virtual_tokens: int = 0
    """Number of positions that the adapter takes before the prompt."""
    is_prefix: bool = False
    """True if the virtual tokens are keys and values, which are written to the cache as they are.
    False if they are embeddings, which run through the model like tokens."""
    invocation: tuple[int, ...] = ()
    """Activated LoRA: the adapter acts from the last occurrence of these tokens on."""
    task_type: str = "CAUSAL_LM"
    """The task that the adapter was trained for: text (CAUSAL_LM), labels (SEQ_CLS) or vectors
    (FEATURE_EXTRACTION)."""
    words: tuple[str, ...] = ()
    """As in `VersionRecord`."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    version: int
    digest: str
    peft_type: str
    rank: int
    """Largest rank of any module."""
    target_modules: tuple[str, ...]
    """Sorted last path components of the modules that carry a delta (`q_proj`, ...)."""
    parameters: int
    bytes: int
    base_model: str | None
    """From the adapter's config, for information only. The shapes of the tensors decide."""
    created_at: datetime
    task_type: str = "CAUSAL_LM"
    virtual_tokens: int = 0
    """As in `AdapterRef`."""
    invocation: tuple[int, ...] = ()
    """As in `AdapterRef`."""
    scalable: bool = True
    """False if only the scales 0 and 1 are allowed."""
    warnings: tuple[str, ...] = ()
    """Notes for people about things that were accepted but may be mistakes."""
    words: tuple[str, ...] = ()
    """Names of the words that the adapter brings: `lora.words.Words.brings`."""


@dataclass(frozen=True, slots=True)
class Share:
    """A version's part of the requests for a name."""

    version: int
    weight: int
    """Relative to the other shares' weights."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of an adapter, for one of its versions or for several."""

    name: str
    shares: tuple[Share, ...]
    """At least one, by version."""


@dataclass(frozen=True, slots=True)
class VersionRules:
    """What an adapter's names mean, and which of its versions are kept."""

    aliases: tuple[Alias, ...] = ()
    """By name."""
    split: tuple[Share, ...] = ()
    """What the adapter's own name means, by version. Empty: the current version; otherwise at least
    two, of which the current version is one."""
    keep_versions: int | None = None
    """How many of the newest versions are kept; 0 is all, None the server's default."""
    keep_days: float | None = None
    """How long versions are kept; 0 is for ever, None the server's default."""


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    name: str
    enabled: bool
    scale: float
    pinned: bool
    description: str
    current: VersionRecord
    versions: tuple[VersionRecord, ...]
    """Oldest first; `current` is one of them."""
    created_at: datetime
    updated_at: datetime
    rules: VersionRules = VersionRules()


@dataclass(slots=True)
class Lease:
    """Keeps the content of `refs` on disk and in memory until it is released.

    `Registry.acquire` creates it in one atomic step. It is released when the engine has emitted
    the request's final event, never when a socket closes.
    """

    refs: tuple[AdapterRef, ...]
    _give_back: Callable[[], None] = field(repr=False)
    _released: bool = field(default=False, repr=False)

    def release(self) -> None:
        """Idempotent: the second call does nothing."""
        if not self._released:
            self._released = True
            self._give_back()
