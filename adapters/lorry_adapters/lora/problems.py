"""Messages about an adapter's problems, safe to display.

The messages quote untrusted files and go to logs, terminals and JSON. A quoted value is therefore
ASCII and short, and a list of problems has a maximum length.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lorry_adapters.errors import InvalidAdapter, Problem, Remedy

MAX_PROBLEMS: Final = 50

PICKLE: Final = "adapter_model.bin"
HUB_PICKLE: Final = "pytorch_adapter.bin"
"""AdapterHub's name of the same file."""

UNKNOWN_COLUMN_ORDER: Final = (
    "It is served as PEFT reads it. If it was trained by Unsloth before 2026.9.6, its experts get "
    "each other's numbers that way"
)
"""The end of the warning whose remedy is GROUP_EXPERTS. Warnings are stored as plain text."""

_HUB_HEADS: Final = frozenset({"model_head.safetensors", "pytorch_model_head.bin"})


_WHOLE_MODEL: Final = Problem("a whole model's, which is served as a base", Remedy.SERVE_AS_BASE)
_FOREIGN: Final = {
    "adapters.safetensors": Problem("MLX-LM's", Remedy.CONVERT),
    "adapters.npz": "MLX-LM's: fuse it into a model (mlx_lm.fuse) and serve that",
    "pytorch_lora_weights.safetensors": "diffusers', of an image model",
    "lit_model.pth.lora": "LitGPT's: merge it (litgpt merge_lora) and serve the model",
    "ggml-adapter-model.bin": "llama.cpp's: upload the PEFT adapter that it was made from",
    "model.safetensors": _WHOLE_MODEL,
    "model.safetensors.index.json": _WHOLE_MODEL,
}
"""Weights in other formats than PEFT's, by file name: their format and what to do."""


def foreign_weights(name: str) -> str | None:
    """Return a message about a weights file in another format, or None if the name is unknown."""
    whose = _FOREIGN.get(name)
    if whose is None and name.endswith(".gguf"):
        whose = "llama.cpp's: upload the PEFT adapter that it was made from"
    if whose is None:
        return None
    said = f"adapter_model.safetensors is missing, and {shown(name)} is {whose}"
    return Problem.within(said, whose)


def head_beside(names: Iterable[str]) -> str | None:
    """Return a message about a head in an AdapterHub folder, or None if there is none.

    AdapterHub's library saves the head beside the adapter and may have trained it."""
    heads = sorted(_HUB_HEADS.intersection(names))
    if not heads:
        return None
    return (
        f"{heads[0]}: a head beside the adapter is not served; if it is the base's own, save "
        "again with save_adapter(..., with_head=False)"
    )


def pickled(what: str, name: str = PICKLE) -> Problem:
    """Describe a weights file that is a pickle. `what` names it in the message."""
    said = "is a pickle, which can run code when it is opened, so it is never opened here"
    name = HUB_PICKLE if name == HUB_PICKLE else PICKLE
    return Problem(f"{what} {said}", Remedy.UNPICKLE, name=name)


def shown(value: object, limit: int = 120) -> str:
    """Format an untrusted value: ASCII, quoted, at most `limit` characters."""
    # Cut large values first, so that a megabyte is not formatted and thrown away.
    if isinstance(value, str):
        value = value[: limit + 1]
    elif isinstance(value, list | tuple | dict) and len(value) > 20:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    elif isinstance(value, int) and abs(value) >= 1 << 64:
        return "a huge number"
    try:
        text = ascii(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= limit else text[:limit] + "..."


def some(names: Iterable[str], count: int = 3) -> str:
    """Format the first few of `names` and the number of the others."""
    every = list(names)
    first = ", ".join(shown(name)[1:-1] for name in every[:count])
    return first if len(every) <= count else f"{first} and {len(every) - count} more"


def refusal(problems: list[str]) -> InvalidAdapter:
    """Return the error that lists `problems`, at most MAX_PROBLEMS of them."""
    if len(problems) > MAX_PROBLEMS:
        rest = len(problems) - MAX_PROBLEMS
        problems = [*problems[:MAX_PROBLEMS], f"and {rest} more problems"]
    return InvalidAdapter(problems)
