"""Which columns of a stacked lora_B belong to which expert.

PEFT keeps the pairs of all experts in two matrices, A [E r, in] and B [out, r E]. The rows of A
are grouped by expert. The columns of B are ordered by rank, so that column j belongs to expert
j mod E. From February 2026 until its release 2026.9.6, Unsloth also grouped the columns of B by
expert. That release trains in PEFT's order and writes the order of a file to its config:

    lora_B_layout                        "rank_major" or "grouped_by_expert", for all parameters
    unsloth_fused_expert_lora            the same for each: {"parameters": {"down_proj":
                                         {"lora_B_layout": "rank_major"}}}

Both are in the config itself or in its `auto_mapping`, whose `unsloth_fixed` is Unsloth's older
mark. The shapes are the same in both orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.problems import UNKNOWN_COLUMN_ORDER, shown

ORDER: Final = "lora_B_layout"
DETAIL: Final = "unsloth_fused_expert_lora"
BY_RANK: Final = "rank_major"
"""PEFT's order."""
BY_EXPERT: Final = "grouped_by_expert"
_MARK: Final = "unsloth_fixed"


@dataclass(frozen=True, slots=True)
class Columns:
    """The order that a config declares. Created by `read_columns` and `columns_of`."""

    every: str | None = None
    """The order of all parameters that `some` does not list. None if it is not declared."""
    some: Mapping[str, str] | None = None
    """By the parameter's own name: `down_proj`."""
    doubt: str | None = None
    """The reason why an undeclared order may differ from PEFT's."""

    def of(self, parameter: str) -> str | None:
        """Return the order of a parameter, given its path. None if it is not declared."""
        return (self.some or {}).get(parameter.rpartition(".")[2], self.every)

    def is_grouped(self, parameter: str) -> bool:
        return self.of(parameter) == BY_EXPERT


def columns_of(config: Mapping[str, Any]) -> Columns:
    """Read an unchecked config. Raises ValueError if it names an unknown order."""
    mapping = config.get("auto_mapping")
    mapping = mapping if isinstance(mapping, Mapping) else {}
    for source in (config, mapping):
        detail = source.get(DETAIL)
        named = detail.get("parameters") if isinstance(detail, Mapping) else None
        if isinstance(named, Mapping):
            some = {
                str(name): _order(entry.get(ORDER) if isinstance(entry, Mapping) else None)
                for name, entry in named.items()
            }
            return Columns(some=some)
        if source.get(ORDER) is not None:
            return Columns(every=_order(source[ORDER]))
    if mapping.get(_MARK):
        return Columns(doubt=f"the config has {_MARK}, but no {ORDER} beside it")
    if not mapping and config.get("peft_version") is None:
        return Columns(doubt="the config has neither a peft_version nor an auto_mapping")
    return Columns()


def read_columns(fields: Fields) -> Columns:
    """Take the fields. An unknown order is added to the problems."""
    keys = (ORDER, DETAIL, "auto_mapping", "peft_version")
    try:
        return columns_of({key: fields.raw(key) for key in keys})
    except ValueError as error:
        fields.problems.append(str(error))
        return Columns()


def by_rank(b_OR: Tensor, experts: int) -> Tensor:
    """Convert a B whose columns are grouped by expert to PEFT's order."""
    outputs = b_OR.shape[0]
    return b_OR.reshape(outputs, experts, -1).transpose(1, 2).reshape(outputs, -1)


def doubts(doubt: str) -> str:
    """Return the warning about stacked experts whose order is uncertain."""
    return (
        "the order of the columns of its experts' lora_B is not certain, as files with either "
        f"order look alike: {doubt}. {UNKNOWN_COLUMN_ORDER}"
    )


def _order(value: object) -> str:
    if value not in (BY_RANK, BY_EXPERT):
        raise ValueError(
            f"{ORDER} is {shown(value)}: it must be {BY_RANK} or {BY_EXPERT}, and the same in "
            "every layer"
        )
    return str(value)
