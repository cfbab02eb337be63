"""How much memory a run takes beside the loaded base, before it takes it.

What a step keeps for its backward pass depends on the family, the adapter and the attention. So it
is measured: two short sequences go forward, and the tensors that autograd keeps are counted. They
grow with the length, and with its square where attention is written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lorry.errors import TrainingError
from lorry.option import format_size
from lorry.training.training_recipe import TrainingRecipe
from lorry_adapters.lora import memory_limit

_SHORT, _LONG = 32, 64
"""Tokens of the two sequences."""

_STATE = 16
"""Bytes for each trained number: itself, its gradient, and AdamW's two moments in float32."""

_ROOM = 1.3
"""What is in use at the same time as all that is kept: gradients of activations, and copies."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes beside the loaded base."""

    state: int
    """The adapter, its gradients and the optimizer."""
    activations: int
    """Of the largest part of a batch that is computed at once."""

    @property
    def bytes(self) -> int:
        return self.state + self.activations

    @property
    def line(self) -> str:
        return (
            f"{format_size(self.bytes)} beside the base: {format_size(self.state)} for the adapter "
            f"and its optimizer, {format_size(self.activations)} for activations"
        )


def need(model: Any, recipe: TrainingRecipe, longest: int) -> Need:
    """`longest`: tokens of the longest sequence."""
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    short, long = _kept(model, _SHORT), _kept(model, _LONG)
    square = max(0.0, (long - short * _LONG / _SHORT) / (_LONG**2 - _SHORT * _LONG))
    linear = short / _SHORT - square * _SHORT
    sequences = recipe.batch // recipe.accumulation
    activations = sequences * longest * (linear + square * longest) * _ROOM
    return Need(state=trained * _STATE, activations=int(activations))


def check(need: Need, recipe: TrainingRecipe) -> None:
    """Raises TrainingError if so much is not free."""
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else memory_limit.free()
    if need.bytes <= free:
        return
    helps = [f"--accumulation {2 * recipe.accumulation}"] if recipe.batch > 1 else []
    helps += [] if recipe.checkpointing else ["--checkpointing"]
    helps += ["a smaller --max-length"]
    raise TrainingError(
        f"training needs {need.line}, and {format_size(free)} are free; "
        f"what helps: {', '.join(helps)}"
    )


def _kept(model: Any, length: int) -> int:
    """Bytes that autograd keeps for a sequence of so many tokens, weights left out."""
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(model.parameters()).device
    ids_1T = torch.ones((1, length), dtype=torch.long, device=device)
    state = torch.get_rng_state()
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), labels=ids_1T).loss
    # The graph keeps what was counted until here, so that no storage is counted twice or reused.
    del loss
    torch.set_rng_state(state)
    return sum(found.values())
