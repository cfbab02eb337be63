"""The paths through one model. `lorry.model.paths` builds them; afterwards they do not change.

A row runs on one path, and its own adapters alone decide which, so that its tokens do not
depend on its neighbours:

compiled   (`lorry.model.compiled`) where the model allows it: for the base, and for rows all of
           whose adapters are pairs of matrices, vectors and other changes of a layer's linears
           (LoRA, DoRA, (IA)3, biases, LoKr, VeRA, OFT, what is measured), virtual tokens, or
           changes of the embeddings and the head
packed     (`lorry.model.packed`) transformers' modeling code. It serves every kind of adapter,
           and everything where there is no compiled step. On a GPU it runs with Triton's
           kernels and recorded decode steps (`lorry.model.triton_model`)
padded     (`lorry.model.padded`) in place of packed, for a model whose attention cannot be
           replaced

All read and write the same cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lorry.model.compiled.compiled_model import CompiledModel
from lorry.model.inputs import Inputs
from lorry.model.kv_cache import KVCache
from lorry.model.logits import Logits
from lorry.model.virtual_tokens import VirtualTokenSlots
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.layers import LoraModel
from lorry_adapters.lora.weights import AdapterWeights


class Path(Protocol):
    """One path through the model."""

    @property
    def name(self) -> str:
        """Of its kernels, as `/info` tells it."""
        ...

    @property
    def inputs_on(self) -> torch.device:
        """Where it reads its inputs."""
        ...

    def run(self, inputs: Inputs) -> Logits:
        """Logits of the wanted tokens."""
        ...


class PoolingPath(Path, Protocol):
    """A path that can also return hidden states."""

    def hidden(self, inputs: Inputs) -> Tensor:
        """`[K, H]`, the input of the output head for the wanted tokens."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PathSet:
    layout: BaseLayout
    """Of the base, with the modules that adapters cannot change on these paths."""
    dtype: torch.dtype
    """Of the activations."""
    unpackable: str | None
    """Why rows are padded; None where they are packed."""
    cache: KVCache
    virtual_tokens: VirtualTokenSlots
    lora: LoraModel
    pooled: PoolingPath
    """Packed or padded, with PyTorch's operations."""
    general: Path
    """Serves every kind of adapter: `pooled` itself, or the same with Triton's kernels."""
    compiled: CompiledModel | None = None
    upload: Callable[[AdapterWeights], AdapterWeights] | None = None
    """Brings an adapter's weights to the device. Any thread. None where a slot's copy does."""

    @property
    def main(self) -> Path:
        """Of the rows of the base."""
        return self.general if self.compiled is None else self.compiled

    @property
    def kernels(self) -> str:
        """Of the main path: `compiled`, `triton` (or `triton, not recorded`), `torch`."""
        return self.main.name

    @property
    def row_layout(self) -> str:
        """How a step's rows lie in the input of the main path: `packed` or `padded`."""
        return "padded" if self.unpackable is not None and self.compiled is None else "packed"

    @property
    def slot_bytes(self) -> int:
        """Reserved for adapters so far, in all slots of all modules."""
        return self.lora.slot_bytes + (0 if self.compiled is None else self.compiled.slot_bytes)

    def close(self) -> None:
        """No step may follow."""
        if self.compiled is not None:
            self.compiled.close()
