"""What the registry says of an adapter: plain data, no behaviour beyond giving a lease back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

MAX_SCALE = 16.0
"""Largest magnitude of a scale; past it an adapter says nothing but noise."""

MERGED = "(merged)"
"""What an adapter that a request merged from others is called. No adapter can have this name."""

MAX_SELECTION = 8
"""Adapters that one request may sum."""


class StorageTier(StrEnum):
    """The nearest place where an adapter's weights are."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """What a request asks for; nothing looked up yet."""

    name: str
    version: int | None = None
    """None: the current one."""
    scale: float | None = None
    """None: the adapter's default scale."""
    digest: str | None = None
    """Of a content without a name of its own, given by `Registry.merged` only."""


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """What a request gets: fixed from acceptance to its last token."""

    name: str
    version: int
    digest: str
    """Identity of the content: `sha256:` and 64 hex digits."""
    scale: float
    """Multiplies the trained strength. 0 is exactly the base model."""
    virtual_tokens: int = 0
    """Positions that it takes in front of the prompt."""
    is_prefix: bool = False
    """They are keys and values, put in the cache ready made; else embeddings, which run
    through the model like tokens."""
    invocation: tuple[int, ...] = ()
    """Activated LoRA: it counts from the last place in the prompt where these tokens stand."""
    task_type: str = "CAUSAL_LM"
    """What it was trained for: text (CAUSAL_LM), labels (SEQ_CLS), vectors
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
    """As the adapter's config says; informative, shapes decide."""
    created_at: datetime
    task_type: str = "CAUSAL_LM"
    virtual_tokens: int = 0
    """As in `AdapterRef`."""
    invocation: tuple[int, ...] = ()
    """As in `AdapterRef`."""
    scalable: bool = True
    """False: it is whole or not at all, at scale 1 or 0."""
    warnings: tuple[str, ...] = ()
    """What was taken, and may be meant otherwise: for people."""
    words: tuple[str, ...] = ()
    """What it brings of its own beside the weights: `lora.words.Words.brings`."""


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


@dataclass(slots=True)
class Lease:
    """Keeps the content of `refs` alive, on disk and in memory, until released.

    Given by `Registry.acquire` in one atomic step; given back when the engine has
    emitted the request's final event, never when a socket closes.
    """

    refs: tuple[AdapterRef, ...]
    _give_back: Callable[[], None] = field(repr=False)
    _released: bool = field(default=False, repr=False)

    def release(self) -> None:
        """Idempotent: the second call does nothing."""
        if not self._released:
            self._released = True
            self._give_back()
