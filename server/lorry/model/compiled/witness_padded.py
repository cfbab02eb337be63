"""`lorry.model.compiled.witness` for a model whose attention cannot be replaced.

It attends by itself, over a short sequence, and what it stores is seen by a cache of ours.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from lorry.model.base_loader import LoadedModel
from lorry.model.compiled.witness import (
    LayerRun,
    Look,
    ModelRun,
    RopeCall,
    Unknown,
    count_of,
    flat,
    watching_layer,
    watching_rest,
)
from lorry.model.compiled.written_rope import WrittenRope
from lorry.model.kv_cache import Shapes
from lorry.model.padded import Noting

BASE = 10000.0
"""Of angles that are written in a layer's code (arXiv:2104.09864)."""


class _Seeing(Noting):
    """Keeps what a layer stores."""

    def __init__(self, layer: LayerRun) -> None:
        super().__init__()
        self._layer = layer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self._layer.stored.append((key_states[0].clone(), value_states[0].clone()))
        return key_states, value_states


def watch_padded(loaded: LoadedModel, shapes: Shapes, look: Look) -> ModelRun:
    """Runs `loaded`. `shapes`: what its layers store, by their numbers.

    Raises:
        Unknown: it has no layers that run one after the other.
    """
    model = loaded.model
    generator = torch.Generator().manual_seed(1)
    layers = [LayerRun(path, number) for number, path in enumerate(_stack(model, len(shapes)))]
    positions_T = torch.arange(count_of(shapes))
    vocab = int(model.get_input_embeddings().weight.shape[0])
    ids_T = torch.randint(0, vocab, positions_T.shape, generator=generator)
    run = ModelRun(ids_T, positions_T, layers)
    arguments: dict[str, Any] = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        arguments["position_ids"] = positions_T.unsqueeze(0)
    written = _written(loaded, shapes, positions_T)

    def seen(layer: LayerRun) -> None:
        look(layer, run.ropes or written)

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(watching_layer(model, layer, generator, partial(seen, layer)))
        stack.enter_context(watching_rest(model, run, generator))
        stack.enter_context(torch.inference_mode())
        output = model(
            input_ids=ids_T.unsqueeze(0),
            attention_mask=torch.ones(1, len(ids_T), dtype=torch.int64),
            past_key_values=Cache(layers=[_Seeing(layer) for layer in layers]),
            use_cache=True,
            **arguments,
        )
    run.logits_TV = flat(output.logits)
    return run


def _stack(model: nn.Module, count: int) -> list[str]:
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{path}.{number}" for number in range(count)]
    raise Unknown("its layers do not run one after the other")


def _written(loaded: LoadedModel, shapes: Shapes, positions_T: Tensor) -> list[RopeCall]:
    """Angles that its code may have without a module: of a whole head, or of as many numbers as its
    config names."""
    (most,) = {shape.key_size for shape in shapes.values()}
    named = [v for v in vars(loaded.config.get_text_config()).values() if type(v) is int]
    found = []
    for size in sorted({most, *(v for v in named if 0 < v < most and v % 2 == 0)}):
        module = WrittenRope()
        cos_1TA, sin_1TA = module(torch.zeros(()), positions_T.unsqueeze(0), size, BASE)
        found.append(RopeCall("", module, (size, BASE), {}, cos_1TA[0], sin_1TA[0]))
    return found
