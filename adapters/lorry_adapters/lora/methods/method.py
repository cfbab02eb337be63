"""The declaration of a kind of adapter: everything that other modules know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.parts import AdapterSpec

Reader = Callable[[Fields, str], AdapterSpec | None]
"""Takes its fields of a config and refuses the rest by name. The second argument is the name of
the method, for modules that read several. None where not even the spec can be told."""


class VirtualTokenKind(Enum):
    """What a method puts in front of the prompt."""

    NONE = auto()
    EMBEDDINGS = auto()
    """They run through the model like tokens."""
    KEYS_AND_VALUES = auto()
    """They are put in the cache as they are."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The parameter that PEFT starts at a value at which the method changes nothing."""

    parameter: str
    """How its name begins: `lora_B`."""
    idle: float = 0.0


@dataclass(frozen=True, slots=True)
class Method:
    """A kind of adapter that is served. `methods.method_table` lists all of them."""

    name: str
    """PEFT's `peft_type`, which a record has too."""
    title: str
    """For people."""
    read: Reader
    parameters: tuple[str, ...] = ()
    """How the names of the tensors begin that it has for a module of the base."""
    gate: Gate | None = None
    """None where its tensors alone do not tell whether it changes anything."""
    virtual_tokens: VirtualTokenKind = VirtualTokenKind.NONE
    scalable: bool = True
    """False where a scale other than 0 and 1 means nothing."""
    recognizes: Callable[[Mapping[str, Any]], bool] | None = None
    """Of a format whose configs have no `peft_type`: whether a config is one of its own."""


@dataclass(frozen=True, slots=True)
class RefusedMethod:
    """A kind of adapter of PEFT's that is not served."""

    name: str
    """Its `peft_type`."""
    parameters: tuple[str, ...]
    """As in `Method`: the tools read its files."""
    reason: str
    """Why it is refused, and what to train in its place."""
    now: str | None = None
    """The method that it is under its present name."""
