"""Does anything but attention carry what one token says to the next?

State-space layers, short convolutions and linear attention keep a state between two
tokens, which is not in our blocks: a sequence that is read in pieces, or beside others in
one row, would get another's state or none. They are recognised by what they do. With the
attention layers answering nothing, every token of a plain model goes by itself; where a
changed first token still changes what comes of the second, something else carries it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LENGTH = 4
"""Tokens of the sequence."""

NOTHING = 0.01
"""A change smaller than this part of the first token's own is rounding: bitsandbytes chooses
the columns that it does not quantize by all rows of a product."""


def mixer(model: PreTrainedModel, device: torch.device) -> str | None:
    """Which module it is, for people; None where there is none. The attention layers must
    answer zeros meanwhile."""
    first, first_seen = _run(model, 0, device)
    second, second_seen = _run(model, 1, device)
    if _changed(first, second) is not True:
        return None
    for path, (x, y) in first_seen.items():
        other = second_seen.get(path)
        if other is None:
            continue
        if _changed(x, other[0]) is False and _changed(y, other[1]):
            return f"{path} ({type(model.get_submodule(path)).__name__})"
    return "one of its layers"


def _run(
    model: PreTrainedModel, token: int, device: torch.device
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Logits of the sequence that begins with `token`, and what went into and came out of
    every module that has an answer for each token, inner modules first."""
    ids_1T = torch.full((1, LENGTH), 2, device=device)
    ids_1T[0, 0] = token
    positions_1T = torch.arange(LENGTH, device=device).unsqueeze(0)
    with _watching(model) as seen, torch.inference_mode():
        output = model(input_ids=ids_1T, position_ids=positions_1T, use_cache=False)
    return output.logits.float(), seen


@contextmanager
def _watching(model: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for path, module in model.named_modules():

        def note(_module: nn.Module, args: Any, kwargs: Any, result: Any, path: str = path) -> None:
            x = next((v for v in (*args, *kwargs.values()) if _by_token(v)), None)
            y = result[0] if isinstance(result, tuple) and result else result
            if x is not None and _by_token(y):
                seen[path] = x.float(), y.float()

        handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _by_token(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.ndim == 3
        and value.shape[:2] == (1, LENGTH)
        and value.is_floating_point()
    )


def _changed(one: Tensor, other: Tensor) -> bool | None:
    """Whether later tokens differ, by a part of how the first does; None where that does not."""
    moved_T = (one - other).abs().amax(-1)[0]
    if not moved_T[0]:
        return None
    return bool(moved_T[1:].max() > NOTHING * moved_T[0])
