"""Advice on an adapter's errors, in terms of this server's commands and settings.

`lorry_adapters` knows no command and no setting: its errors name a remedy with its facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from lorry.errors import EngineRemedy
from lorry_adapters.errors import InvalidAdapter, Problem, Remedy, summary
from lorry_adapters.lora.problems import UNKNOWN_COLUMN_ORDER

_CONVERT: Final = "lorry adapters convert FOLDER"
ADVICE: Final[Mapping[StrEnum, str]] = {
    Remedy.ENABLE: "enable it first (lorry adapters enable {name})",
    Remedy.REPLACE: "replace it (lorry adapters push FOLDER --replace, or replace=true), or "
    "choose another name",
    Remedy.RAISE_MAX_RANK: "--max-lora-rank {needed} (LORRY_MAX_LORA_RANK) allows it",
    Remedy.RAISE_ADAPTER_MEMORY: "start the server with more --adapter-memory "
    "(LORRY_ADAPTER_MEMORY)",
    Remedy.RAISE_MAX_UPLOAD: "--max-upload (LORRY_MAX_UPLOAD) raises that limit",
    Remedy.OTHER_HOME: "--home (LORRY_HOME) names another one",
    Remedy.MOVE_CATALOG: "lorry catalog move, with this server's --home and --catalog, does that",
    Remedy.ADOPT: "lorry adapters recover makes adapters of them",
    Remedy.SERVE_AS_BASE: "lorry serve FOLDER does that",
    Remedy.UNQUANTIZED_BASE: "--quantize none serves it so",
    Remedy.GROW_BASE: "lorry models extend {base} --adapter FOLDER --out DIR makes that base from "
    "the adapter's folder with its tokenizer in it",
    Remedy.CONVERT: f"{_CONVERT} --out DIR writes it as PEFT does",
    Remedy.CONVERT_START: f"{_CONVERT} --initial DIR --out DIR makes a plain LoRA of it, with the "
    "adapter as it was before the first step",
    Remedy.KEEP_TASK: f"{_CONVERT} --task N --out DIR makes one of task N",
    Remedy.KEEP_TEXT: f"{_CONVERT} --text-only --out DIR makes an adapter of its text part alone",
    Remedy.GROUP_EXPERTS: f"{_CONVERT} --experts-grouped --out DIR puts them in PEFT's order",
    Remedy.UNPICKLE: "if you trust it, convert it: python -c "
    '"import torch, safetensors.torch as s; '
    "s.save_file(torch.load('{name}', map_location='cpu', weights_only=True), "
    "'adapter_model.safetensors')\"",
    Remedy.FOLLOW_LINKS: "tar --dereference follows links",
    Remedy.FILL_HOLES: "tar does that without --sparse",
    Remedy.GIVE: "name it with {flag}",
    Remedy.LEAVE_OUT: "leave {flag} out",
    EngineRemedy.MORE_CACHE: "start the server with more --kv-cache-memory",
    EngineRemedy.MORE_SLOTS: "start the server with more --max-loras",
    EngineRemedy.ASK_FOR_LABELS: "ask POST /classify",
    EngineRemedy.ASK_FOR_VECTORS: "ask POST /v1/embeddings",
}
"""By remedy; `{flag}` is the command's option for the fact `argument`."""


def advised(text: str) -> str:
    """Return `text` with its advice, or as it is if there is none."""
    if isinstance(text, Problem) and text.remedy is not None:
        flag = "--" + str(text.facts.get("argument", "")).replace("_", "-")
        return f"{text}; {ADVICE[text.remedy].format(flag=flag, **text.facts)}"
    # A warning that was stored with its adapter as text.
    if text.endswith(UNKNOWN_COLUMN_ORDER):
        return f"{text}; {ADVICE[Remedy.GROUP_EXPERTS]}"
    return str(text)


def message_of(error: Exception) -> str:
    """Return an error's message with its advice."""
    if isinstance(error, InvalidAdapter):
        return summary([advised(problem) for problem in error.problems])
    message = getattr(error, "message", None)
    return advised(message) if isinstance(message, str) else str(error)
