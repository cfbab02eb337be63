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
"""All that are served."""

REFUSED_METHODS: Final[Mapping[str, RefusedMethod]] = {method.name: method for method in REFUSED}


def method_of(config: Mapping[str, Any]) -> Method | None:
    """The method that a config is of; None where it is of none that is served."""
    name = config.get("peft_type")
    if name is None:
        return next(
            (one for one in METHODS.values() if one.recognizes and one.recognizes(config)), None
        )
    found = METHODS.get(name) if isinstance(name, str) else None
    return None if found is None or found.recognizes else found


def is_prefix(peft_type: str) -> bool:
    """Whether the virtual tokens of a record's method are keys and values."""
    method = METHODS.get(peft_type)
    return method is not None and method.virtual_tokens is VirtualTokenKind.KEYS_AND_VALUES


def has_virtual_tokens(peft_type: str) -> bool:
    method = METHODS.get(peft_type)
    return method is not None and method.virtual_tokens is not VirtualTokenKind.NONE


def parameter_prefixes() -> tuple[str, ...]:
    """How the names of tensors begin that any of PEFT's methods, or AdapterHub's, has for a
    module of the base; the longest of two that begin alike comes first."""
    served = (one for method in METHODS.values() for one in method.parameters)
    every = {*served, *(one for method in REFUSED for one in method.parameters)}
    return tuple(sorted(every, key=lambda one: (-len(one), one)))
