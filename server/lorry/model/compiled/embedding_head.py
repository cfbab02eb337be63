"""What adapters do where a compiled step begins and ends: the embeddings, and the output head.

Token rows, tables and heads of an adapter's own, pairs on embeddings: whatever delta it is,
the packed model's own functions compute it, before the step for its first activations and
after it for its logits. So such an adapter does not take the packed model through all layers.
A product of PyTorch's may differ in its last digit with the number of an adapter's tokens in the
step. A head sees the base's logits without any pair, so a row that sums it with other adapters
runs on the packed model. A whole head is not PyTorch's but the step's own (`own_head`).

Letters: T tokens of the step, K of them wanted, M of one adapter, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorry.model.compiled.own_head import HeadRun, PackedHead
from lorry.model.guard import require
from lorry.model.inputs import Inputs
from lorry.model.logits import Logits
from lorry_adapters.lora.effects import Delta
from lorry_adapters.lora.plan import Plan
from lorry_adapters.lora.wrapped import SlotEffects, add

Deltas = Mapping[str, Sequence[Delta]]
"""By module."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingHead:
    """Of one adapter."""

    embedding: tuple[Delta, ...] = ()
    head: tuple[Delta, ...] = ()
    own_head: PackedHead | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what is held beside the file's content."""
        return 0 if self.own_head is None else self.own_head.nbytes


class EmbeddingHeadSlots:
    """By slot. Engine thread only."""

    def __init__(
        self,
        table_VH: Tensor,
        table_factor: float = 1.0,
        logit_factor: float = 1.0,
        logit_cap: float | None = None,
    ) -> None:
        """What the base does to rows of its table, and to what the head answers."""
        self._table_VH, self._table_factor = table_VH, table_factor
        self._logit_factor, self._logit_cap = logit_factor, logit_cap
        self._embedding = SlotEffects()
        self._head = SlotEffects()
        self._own_head: dict[int, PackedHead] = {}

    def place(self, slot: int, embedding_head: EmbeddingHead) -> None:
        """Fill `slot`; empty embedding_head empty it."""
        self._embedding.place(slot, embedding_head.embedding)
        self._head.place(slot, embedding_head.head)
        if embedding_head.own_head is None:
            self._own_head.pop(slot, None)
        else:
            self._own_head[slot] = embedding_head.own_head

    def has_head(self, slot: int) -> bool:
        return slot in self._own_head or bool(self._head.get(slot))

    def own_heads(self, inputs: Inputs) -> list[HeadRun]:
        """What the step multiplies instead of the base's head."""
        if not self._own_head:
            return []
        return [
            HeadRun(head, first, first + count)
            for slot, first, count, _ in inputs.head.runs
            if (head := self._own_head.get(slot)) is not None
        ]

    def embeddings(self, inputs: Inputs) -> Tensor | None:
        """`[T, H]` of every token, where an adapter of the step changes any; else None."""
        if not _wanted(self._embedding, inputs.body):
            return None
        ids_T = inputs.ids_1T[0]
        # Its answer is changed in place.
        y_TH = F.embedding(ids_T, self._table_VH).float() * self._table_factor
        add(y_TH, self._embedding.of(ids_T, y_TH, inputs.body))
        return y_TH

    def wants_hidden(self, inputs: Inputs) -> bool:
        """Whether `answers` has something to do, and needs what the head saw."""
        return _wanted(self._head, inputs.head)

    def headed(self, inputs: Inputs) -> frozenset[int]:
        """The wanted tokens whose logits `answers` changes."""
        return frozenset(
            token
            for slot, first, count, _ in inputs.head.runs
            if self._head.get(slot)
            for token in range(first, first + count)
        )

    def answers(self, hidden_KH: Tensor, logits: Logits, plan: Plan) -> Logits:
        """The logits with what the adapters' heads make of them; in place. Those of `headed` are
        the head's own, which the base's factor and cap are still to come to."""
        deltas = self._head.of(hidden_KH, logits.values_KV, plan)
        add(logits.values_KV, deltas)
        for tokens, _ in deltas:
            logits.values_KV[tokens] = self._scaled(logits.values_KV[tokens])
            changed = Logits.of(logits.values_KV[tokens])
            logits.norm_K[tokens] = changed.norm_K
            logits.best_K[tokens] = changed.best_K
        return logits

    def _scaled(self, values_MV: Tensor) -> Tensor:
        if self._logit_factor != 1.0:
            values_MV = values_MV * self._logit_factor
        if self._logit_cap is not None:
            values_MV = torch.tanh(values_MV / self._logit_cap) * self._logit_cap
        return values_MV


def _wanted(effects: SlotEffects, plan: Plan) -> bool:
    return bool(effects) and any(effects.get(slot) for slot in plan.slots)


def rows_of(values_TH: Tensor) -> dict[int, int]:
    """The address of each row, by its number."""
    require(
        values_TH.dtype is torch.float32 and values_TH.is_contiguous(),
        f"embeddings of {values_TH.dtype} where float32 is read",
    )
    size = values_TH.shape[1] * values_TH.element_size()
    return {row: values_TH.data_ptr() + row * size for row in range(len(values_TH))}
