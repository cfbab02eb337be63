"""Summary of an adapter's files: its method, size, modules, and whether it has an effect.

It needs no base. `lora.weights.inspect` checks that the numbers are finite and fit a base; this
module describes even adapters that no server accepts, as far as they can be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.methods.lora_method import LORA
from lorry_adapters.lora.methods.method_table import METHODS, has_virtual_tokens, parameter_prefixes
from lorry_adapters.lora.peft_folder import PREFIX, PeftFolder, natural
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.tensor_file import DTYPES, PLACES

_PARAMETER: Final = re.compile(rf"\.(?:{'|'.join(map(re.escape, parameter_prefixes()))})")
"""Matches the place in a key where the base's module ends and the method's parameter begins."""

_KINDS: Final = {
    "use_rslora": "rsLoRA",
    "use_dora": "DoRA",
    "lora_bias": "a bias on lora_B",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "bare parameters",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA",
    "kasa_config": "KaSA",
    "use_bdlora": "BD-LoRA",
    "use_qalora": "QALoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
}
"""Config keys of LoRA's variants."""


@dataclass(frozen=True, slots=True)
class ModulePart:
    """The part of an adapter that belongs to one module of the base."""

    module: str
    kind: str
    """`lora`, or the kind of another tensor: `lora_magnitude_vector`, `full weight`, ..."""
    rank: int | None
    strength: float | None
    """alpha/rank, or alpha/sqrt(rank); of a LoRA pair."""
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """Facts about an adapter. None if the files do not tell."""

    method: str
    kinds: tuple[str, ...]
    """Variants of the method."""
    task: str | None
    base_model: str | None
    """From the config, unchecked."""
    initialisation: str | None
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    parts: tuple[ModulePart, ...]
    """In the layers' order."""
    acts: bool | None
    """True if it changes any output. None if the files alone do not tell."""
    why: str
    """The reason for `acts`."""


def summarize(folder: PeftFolder) -> AdapterSummary:
    """Describe a folder. Raises InvalidAdapter if the tensors cannot be read at all."""
    config = folder.config
    acts, why = _acts(folder)
    start = config.get("init_lora_weights")
    return AdapterSummary(
        method=_title(folder),
        kinds=tuple(_kinds(config)),
        task=_text(config.get("task_type")),
        base_model=_text(config.get("base_model_name_or_path")),
        initialisation=start if isinstance(start, str) else None,
        parameters=sum(entry.elements for entry in folder.entries.values()),
        bytes=sum(entry.bytes for entry in folder.entries.values()),
        dtypes=tuple(sorted({entry.dtype for entry in folder.entries.values()})),
        parts=tuple(_parts(folder)),
        acts=acts,
        why=why,
    )


def _title(folder: PeftFolder) -> str:
    method = METHODS.get(folder.peft_type)
    return _text(folder.config.get("peft_type")) or "unknown" if method is None else method.title


def _text(value: object) -> str | None:
    return shown(value)[1:-1] if isinstance(value, str) and value else None


def _kinds(config: Mapping[str, Any]) -> list[str]:
    kinds = [name for key, name in _KINDS.items() if config.get(key)]
    bias = config.get("bias")
    if bias not in (None, "none"):
        kinds.append(f"bias {shown(bias)[1:-1]}")
    return kinds


def _parts(folder: PeftFolder) -> list[ModulePart]:
    pairs, others = folder.pairs()
    parts = []
    for module, pair in pairs.items():
        entries = [folder.entries[key] for key in (pair.a_key, pair.b_key)]
        parts.append(
            ModulePart(
                module,
                "lora_embedding" if pair.embedding else "lora",
                pair.rank,
                _strength(folder, module, pair.rank),
                sum(entry.elements for entry in entries),
                sum(entry.bytes for entry in entries),
            )
        )
    for key in others:
        entry = folder.entries[key]
        module, kind = module_and_kind(key.removeprefix(PREFIX))
        parts.append(ModulePart(module, kind, None, None, entry.elements, entry.bytes))
    return sorted(parts, key=lambda part: natural(part.module))


def _strength(folder: PeftFolder, module: str, rank: int) -> float | None:
    try:
        return folder.strength(module, rank)
    except InvalidAdapter:
        return None


def module_and_kind(key: str) -> tuple[str, str]:
    """Split a key into the module and the kind of tensor: `ia3_l`, `full weight`, ..."""
    found = _PARAMETER.search(key)
    if found is not None:
        return key[: found.start()], key[found.start() + 1 :]
    module, _, last = key.rpartition(".")
    return (module, f"full {last}") if module else (key, "")


def _acts(folder: PeftFolder) -> tuple[bool | None, str]:
    """Return whether the adapter changes any output, and the reason."""
    if not folder.entries:
        return False, "it holds no tensors"
    if any(entry.dtype not in (*DTYPES, *PLACES) for entry in folder.entries.values()):
        return None, "its tensors are of a type that is not read"
    if folder.peft_type == LORA.name:
        return _lora_acts(folder)
    if has_virtual_tokens(folder.peft_type):
        return True, "it puts tokens of its own before the prompt"
    method = METHODS.get(folder.peft_type)
    gate = None if method is None else method.gate
    gates = [key for key in folder.entries if gate is not None and f".{gate.parameter}" in key]
    if gate is None or not gates:
        return None, "what it does depends on more than its own tensors"
    value = f"{gate.idle:g}" if gate.idle else "zero"
    if any(bool((folder.read(key) != gate.idle).any()) for key in gates):
        return True, f"some {gate.parameter} is not {value}"
    others = [key for key in folder.entries if module_and_kind(key)[1].startswith("full ")]
    if others:
        idle = f"every {gate.parameter} is {value}"
        return None, f"{idle}; {_listed(others)} may differ from the base's"
    return False, f"every {gate.parameter} is {value}"


def _lora_acts(folder: PeftFolder) -> tuple[bool | None, str]:
    pairs, others = folder.pairs()
    for module, pair in pairs.items():
        if folder.strength(module, pair.rank) == 0:
            continue
        # B·A is zero if either factor is. That two nonzero factors cancel is not considered.
        if _any(folder.read(pair.b_key)) and _any(folder.read(pair.a_key)):
            return True, "its deltas are not zero"
    if any(_any(folder.read(key)) for key in others if key.endswith(".lora_B.bias")):
        return True, "some bias on lora_B is not zero"
    # Block-diagonal pairs do not have the module's shapes.
    halves = [[key for key in others if f".lora_{half}." in key] for half in "AB"]
    if all(any(_any(folder.read(key)) for key in keys) for keys in halves):
        return True, "its deltas are not zero"
    if others:
        return None, f"every delta is zero; {_listed(others)} may differ from the base's"
    return False, "every delta is zero: no lora_B (or no lora_A, or no lora_alpha) is anything else"


def _any(tensor: Tensor) -> bool:
    return bool(tensor.count_nonzero())


def _listed(keys: Sequence[str]) -> str:
    return shown(keys[0])[1:-1] + (f" and {len(keys) - 1} more tensors" if len(keys) > 1 else "")
