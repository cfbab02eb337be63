"""Every kind of adapter, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lorry_adapters.lora.methods import (
    adalora,
    adapterhub,
    biases,
    frod,
    ia3,
    layer_norms,
    lora_method,
    measured,
    prefix_tuning,
    products,
    prompt_tuning,
    sparse_updates,
    subspaces,
    trainable_tokens,
    vera,
)
from lorry_adapters.lora.methods.method import Method, RefusedMethod, VirtualTokenKind
from lorry_adapters.lora.methods.refused import REFUSED

_MODULES: Final = (
    lora_method, adalora, ia3, biases, frod, layer_norms, products, subspaces, sparse_updates,
    trainable_tokens, vera, measured, prompt_tuning, prefix_tuning, adapterhub,
)  # fmt: skip

METHODS: Final[Mapping[str, Method]] = {
    method.name: method for module in _MODULES for method in module.METHODS
}
"""All served methods."""

REFUSED_METHODS: Final[Mapping[str, RefusedMethod]] = {method.name: method for method in REFUSED}


def method_of(config: Mapping[str, Any]) -> Method | None:
    """Return the method of a config, or None if it is not served."""
    name = config.get("peft_type")
    if name is None:
        return next(
            (one for one in METHODS.values() if one.recognizes and one.recognizes(config)), None
        )
    found = METHODS.get(name) if isinstance(name, str) else None
    return None if found is None or found.recognizes else found


def is_prefix(peft_type: str) -> bool:
    """Return whether a record's method has keys and values as virtual tokens."""
    method = METHODS.get(peft_type)
    return method is not None and method.virtual_tokens is VirtualTokenKind.KEYS_AND_VALUES


def has_virtual_tokens(peft_type: str) -> bool:
    method = METHODS.get(peft_type)
    return method is not None and method.virtual_tokens is not VirtualTokenKind.NONE


def parameter_prefixes() -> tuple[str, ...]:
    """Return the starts of all names that PEFT's methods or AdapterHub's give to tensors for a
    module of the base. Of two with the same start, the longer comes first."""
    served = (one for method in METHODS.values() for one in method.parameters)
    every = {*served, *(one for method in REFUSED for one in method.parameters)}
    return tuple(sorted(every, key=lambda one: (-len(one), one)))
