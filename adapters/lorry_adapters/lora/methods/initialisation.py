"""How a LoRA was initialised (`init_lora_weights`), and whether that changed the base.

PiSSA and similar methods subtract the initial pair from the base's own weights. The served base
still has these weights, so such an adapter is relative to another base and would be wrong here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lorry_adapters.errors import Problem, Remedy
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.problems import shown

SAME_BASE: Final = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Initialisations that leave the base unchanged. Once trained, the adapter is a plain LoRA."""

CHANGED_BASE: Final = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
"""Names by the start of the value: PiSSA's value ends with its number of iterations."""


def changed_base(config: Mapping[str, Any]) -> str | None:
    """Return the name of an initialisation that changed the base, or None."""
    found = _changed(config.get("init_lora_weights"))
    return CHANGED_BASE[found] if found and config.get("peft_type") == "LORA" else None


def check_initialisation(fields: Fields) -> None:
    """Refuse an initialisation that changes the base or is unknown."""
    value = fields.raw("init_lora_weights")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str) and value.lower() in SAME_BASE:
        return
    start = _changed(value)
    if start is None:
        fields.problems.append(f"init_lora_weights {shown(value)} is not served yet")
        return
    said = (
        f"{CHANGED_BASE[start]} (init_lora_weights {shown(value)}) changes the base's own weights "
        "and is not served: "
    )
    if start == "loftq":
        fields.problems.append(f"{said}train it as a LoRA")
        return
    fields.problems.append(
        Problem(
            f"{said}save the adapter again as plain LoRA, with save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...)",
            Remedy.CONVERT_START,
        )
    )


def _changed(value: object) -> str | None:
    text = value.lower() if isinstance(value, str) else ""
    return next((start for start in CHANGED_BASE if text.startswith(start)), None)
