"""The declaration of a kind of adapter: everything that other modules know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.parts import AdapterSpec

Reader = Callable[[Fields, str], AdapterSpec | None]
"""Takes its fields from a config and refuses the others by name. The second argument is the
method's name, for modules that read several. Returns None if the config is too damaged for a
spec."""


class VirtualTokenKind(Enum):
    """The kinds of virtual tokens before the prompt."""

    NONE = auto()
    EMBEDDINGS = auto()
    """They run through the model like tokens."""
    KEYS_AND_VALUES = auto()
    """They are written to the cache as they are."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The parameter that PEFT initialises to a value at which the method changes nothing."""

    parameter: str
    """The start of its name: `lora_B`."""
    idle: float = 0.0


@dataclass(frozen=True, slots=True)
class Method:
    """A kind of adapter that is served. `methods.method_table` lists all of them."""

    name: str
    """PEFT's `peft_type`, which is also in a record."""
    title: str
    """For people."""
    read: Reader
    parameters: tuple[str, ...] = ()
    """Starts of the names of its tensors for a module of the base."""
    gate: Gate | None = None
    """None if its tensors alone do not show whether it changes anything."""
    virtual_tokens: VirtualTokenKind = VirtualTokenKind.NONE
    scalable: bool = True
    """False if only the scales 0 and 1 have a meaning."""
    full_weights: bool = False
    """True if a step may need a whole matrix for each changed linear."""
    recognizes: Callable[[Mapping[str, Any]], bool] | None = None
    """For a format whose configs have no `peft_type`: returns whether a config has that format."""


@dataclass(frozen=True, slots=True)
class RefusedMethod:
    """A kind of PEFT adapter that is not served."""

    name: str
    """Its `peft_type`."""
    parameters: tuple[str, ...]
    """As in `Method`: the tools read its files."""
    reason: str
    """Why it is refused, and what to train instead."""
    now: str | None = None
    """The method's present name, if it was renamed."""
