"""Reorders the columns of stacked experts to PEFT's order (`lora.columns`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorry_adapters.errors import InvalidAdapter, Problem, Remedy, ToolError
from lorry_adapters.lora.columns import BY_EXPERT, BY_RANK, DETAIL, ORDER, columns_of
from lorry_adapters.lora.peft_folder import PeftFolder


def out_of_order(folder: PeftFolder, grouped: bool) -> dict[str, int]:
    """Return the number of experts by the key of each lora_B in the other order. `grouped`: tensors
    whose order the config does not declare are in that order.

    Raises InvalidAdapter if the config names an unknown order, ToolError if `grouped` is
    superfluous.
    """
    try:
        columns = columns_of(folder.config)
    except ValueError as error:
        raise InvalidAdapter([str(error)]) from None
    pairs, _ = folder.pairs()
    stacked = {m: pair for m, pair in pairs.items() if pair.experts > 1 and pair.rank > 1}
    silent = [module for module in stacked if columns.of(module) is None]
    if grouped and not silent:
        said = f"the config says which, in {ORDER}" if stacked else "it has none of rank above 1"
        raise ToolError(
            Problem(
                f"experts are put in order where that is not known: {said}",
                Remedy.LEAVE_OUT,
                argument="experts_grouped",
            )
        )
    return {
        pair.b_key: pair.experts
        for module, pair in stacked.items()
        if columns.is_grouped(module) or (grouped and module in silent)
    }


def in_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of an adapter in PEFT's order. It declares the order where Unsloth and
    Lorry read it and PEFT accepts it."""
    mapping = config.get("auto_mapping")
    mapping = dict(mapping) if isinstance(mapping, Mapping) else {}
    mapping.pop(DETAIL, None)
    kept = {key: value for key, value in config.items() if key not in (ORDER, DETAIL)}
    return {**kept, "auto_mapping": {**mapping, ORDER: BY_RANK}}


def says_order(config: Mapping[str, Any]) -> bool:
    """In the config itself, where PEFT knows no such key."""
    return config.get(ORDER) in (BY_RANK, BY_EXPERT) or DETAIL in config
