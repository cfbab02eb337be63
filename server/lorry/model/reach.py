"""Which tokens reach a module: the step's, those with logits, or others.

An adapter's delta is added token by token, after the step's plan, so a module that can carry
one must be handed the plan's tokens and answer each. Most linears are handed the step's new
tokens, and what comes after the cut (`logits_to_keep`) those with logits: the head, and in
BERT's kind a linear before it. A few are handed something else: Doge's masks are computed from
the values of the whole past, some routers answer with pairs. The first forward pass tells.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorry_adapters.lora.base import BaseLayout, ModuleKind

TOKENS, KEPT = 5, 2
"""New tokens of the pass that is watched, and those of them with logits."""


@dataclass(frozen=True, slots=True)
class Reach:
    head: frozenset[str] = frozenset()
    """Modules that are handed the tokens with logits."""
    apart: frozenset[str] = frozenset()
    """Linears that are handed neither those nor the step's, or answer with something else."""

    def of(self, layout: BaseLayout) -> BaseLayout:
        """`layout`, which refuses adapters for what is apart."""
        return replace(layout, apart=self.apart)


EVERYWHERE = Reach()


def kept_of(model: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """What asks `model` for the logits of the last token alone, where it can be asked."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return {}
    return {"logits_to_keep": torch.arange(TOKENS - KEPT, TOKENS, device=device)}


@dataclass(slots=True)
class Watch:
    """What a forward pass handed to the modules of `layout`."""

    layout: BaseLayout
    _counts: dict[str, set[int]] = field(default_factory=dict)
    _odd: set[str] = field(default_factory=set)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for path in self.layout.modules:

            def note(_module: nn.Module, given: Any, answer: Any, path: str = path) -> None:
                self._note(path, given[0] if given else None, answer)

            handles.append(model.get_submodule(path).register_forward_hook(note))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, path: str, x: object, y: object) -> None:
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            self._odd.add(path)
        elif x.ndim and y.ndim:
            rows = x.numel() // x.shape[-1]
            self._counts.setdefault(path, set()).add(rows)
            if rows != y.numel() // y.shape[-1]:
                self._odd.add(path)

    def reach(self) -> Reach:
        head = {path for path, counts in self._counts.items() if counts == {KEPT}}
        apart = {path for path, counts in self._counts.items() if counts not in ({KEPT}, {TOKENS})}
        linear = {
            path
            for path, module in self.layout.modules.items()
            if module.kind in (ModuleKind.LINEAR, ModuleKind.CONV1D)
        }
        return Reach(frozenset(head - self._odd), frozenset((apart | self._odd) & linear))
