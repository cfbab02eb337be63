"""What a LoRA started from (`init_lora_weights`), and whether that changed the base.

PiSSA and its like take their start out of the base's own weights, which the served base still
has: such an adapter is relative to another base, and would be wrong here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lorry_adapters.errors import Problem, Remedy
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.problems import shown

SAME_BASE: Final = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Once trained, plain LoRA."""

CHANGED_BASE: Final = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
"""By what the value begins with: PiSSA's goes on with its number of iterations."""


def changed_base(config: Mapping[str, Any]) -> str | None:
    """The name of the start that changed the base; None where the base is as it was."""
    found = _changed(config.get("init_lora_weights"))
    return CHANGED_BASE[found] if found and config.get("peft_type") == "LORA" else None


def check_start(fields: Fields) -> None:
    """Refuse, by name and with the cure, what is relative to a changed base, or unknown."""
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
