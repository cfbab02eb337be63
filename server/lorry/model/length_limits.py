"""Lengths at which a model changes what it does, and a copy of it in which they are short.

A sliding window, a chunk or the length from which other rotary frequencies hold is often
thousands of tokens: too many to run at every start. The copy has the model's own weights,
the fewest first layers that show every kind of layer, and these lengths cut down, so that
a few dozen tokens go beyond all of them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lorry.model.base_loader import LoadedModel
from lorry.model.layout import layout_of

WINDOW = 8
"""What windows, chunks and selections are cut down to, in tokens."""

THRESHOLD = 16
"""What lengths are cut down to from which positions count otherwise."""

_WINDOWS = re.compile(r"(window|chunk|block)(_size|_len|_length)?$|^index_topk")
_THRESHOLDS = re.compile(r"^original_max_|max_seq_len_cached$|^floor_scale$")
"""Names in transformers' configs, and of what its modules keep of them."""


def limits_of(loaded: LoadedModel) -> dict[str, int]:
    """By name, those that a sequence of this server can go beyond."""
    found: dict[str, int] = {}
    for place, name in _places(loaded.model):
        value = place[name]
        if _short(name) < value < loaded.max_model_len:
            found[name] = max(value, found.get(name, 0))
    return found


def shortened(loaded: LoadedModel, *, limits: bool = True, layers: bool = True) -> LoadedModel:
    """A copy of `loaded` that shares its weights. `limits`: cut down; `layers`: only the first,
    as many as show every kind of layer."""
    model = copy.deepcopy(loaded.model, _shared(loaded.model))
    if limits:
        for place, name in _places(model):
            if place[name] < loaded.max_model_len:
                place[name] = min(place[name], _short(name))
    if layers:
        _truncate(model)
    # What is wrapped already stays it, and nothing else is to be.
    layout = replace(
        layout_of(model, loaded.name), modules={}, parameters={}, output_embedding=None
    )
    return replace(loaded, model=model, config=model.config, layout=layout)


def _short(name: str) -> int:
    return THRESHOLD if _THRESHOLDS.search(name) else WINDOW


def _places(model: PreTrainedModel) -> Iterator[tuple[MutableMapping[str, Any], str]]:
    """Where limits stand: in the text model's config, and in what its modules keep."""
    text: Any = model.config.get_text_config()
    yield from _in(vars(text))
    for module in model.modules():
        yield from _in(vars(module))


def _in(mapping: MutableMapping[str, Any]) -> Iterator[tuple[MutableMapping[str, Any], str]]:
    for name, value in list(mapping.items()):
        if isinstance(value, dict) and name.startswith("rope_"):
            yield from _in(value)
            for nested in value.values():
                if isinstance(nested, dict):
                    yield from _in(nested)
        elif type(value) is int and value > 0 and (
            _WINDOWS.search(name) or _THRESHOLDS.search(name)
        ):  # fmt: skip
            yield mapping, name


def _shared(model: nn.Module) -> dict[int, object]:
    """A memo for `deepcopy`: what the copy has in common with the model."""
    memo: dict[int, object] = {id(p): p for p in model.parameters()}
    for module in model.modules():
        leaf = next(module.children(), None) is None
        # What holds weights and nothing else, quantized ones and adapters' wrappers too.
        if hasattr(module, "base") or (leaf and not _kept_limits(module)):
            memo[id(module)] = module
    return memo


def _kept_limits(module: nn.Module) -> bool:
    """True if a copy could need something else in it than the model has."""
    own = vars(module)
    return (
        "config" in own
        or any(True for _ in _in(own))
        or (
            any(isinstance(buffer, Tensor) for buffer in module.buffers(recurse=False))
            and not any(True for _ in module.parameters(recurse=False))
        )
    )


def _truncate(model: PreTrainedModel) -> None:
    config: Any = model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    stacks = [
        (owner, name, stack)
        for owner in model.modules()
        for name, stack in owner.named_children()
        if isinstance(stack, nn.ModuleList) and len(stack) == count
    ]
    if not stacks:
        return
    kinds = [
        tuple(_kind(stack[index]) for _, _, stack in stacks) for index in range(len(stacks[0][2]))
    ]
    keep = max(2, 1 + max(kinds.index(kind) for kind in kinds))
    for owner, name, stack in stacks:
        setattr(owner, name, stack[:keep])
    config.num_hidden_layers = min(keep, len(kinds))


def _kind(layer: nn.Module) -> object:
    """Equal for layers that do the same with other weights."""
    return tuple(
        (
            path,
            type(module).__name__,
            tuple(
                (name, value)
                for name, value in sorted(vars(module).items())
                if not name.startswith("_")
                and (value is None or isinstance(value, bool | str) or _WINDOWS.search(name))
            ),
        )
        for path, module in layer.named_modules()
    )
