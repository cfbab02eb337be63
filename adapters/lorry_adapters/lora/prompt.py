"""Virtual tokens, which prompt tuning, p-tuning and prefix tuning put before a prompt.

They take the positions 0 to N - 1, and the prompt begins at N. The base's weights are not changed,
so there is no strength to scale: an adapter is used as a whole or not at all.

Letters: N virtual tokens, L layers, K heads of keys and values, D head size, H embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PromptEmbeddings:
    """Embeddings that run through the model like those of tokens (arXiv:2104.08691). They are
    inserted at the output of the base's table. A base that scales its embeddings does so inside the
    table or behind it, so these are scaled exactly if PEFT scales them."""

    rows_NH: Tensor

    @property
    def count(self) -> int:
        return self.rows_NH.shape[0]

    @property
    def nbytes(self) -> int:
        return self.rows_NH.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class KeyValuePrefix:
    """Keys and values for every layer's cache (arXiv:2101.00190), in the cache's form: the keys are
    not rotated by their positions any more."""

    cells_L2NKD: Tensor
    """[:, 0] keys, [:, 1] values."""

    @property
    def count(self) -> int:
        return self.cells_L2NKD.shape[2]

    @property
    def nbytes(self) -> int:
        return self.cells_L2NKD.nbytes

    @classmethod
    def of(cls, flat_NX: Tensor, layers: int, heads: int, size: int) -> KeyValuePrefix:
        """Convert PEFT's tensor: a token's keys and values, layer by layer, in one row."""
        cells_NL2KD = flat_NX.view(-1, layers, 2, heads, size)
        return cls(cells_NL2KD.permute(1, 2, 0, 3, 4).contiguous())


VirtualTokens: TypeAlias = PromptEmbeddings | KeyValuePrefix


def multitask(shared_NH: Tensor, columns_NR: Tensor, rows_RH: Tensor) -> PromptEmbeddings:
    """Return one task's prompt: the shared one times the task's own, which has a low rank
    (arXiv:2303.02861, eq. 1)."""
    return PromptEmbeddings(shared_NH.float() * torch.matmul(columns_NR.float(), rows_RH.float()))
