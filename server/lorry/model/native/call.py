"""A step as `step.h` wants it: the batch's rows as arrays, and room for what comes back.

Lists and `array`, hardly any numpy, and nothing of torch. The step before has driven
code and data out of the processor's caches, so every operation that this one has not
used yet costs some ten microseconds, whatever its size; and torch's give the interpreter
up, which the event loop then keeps for as long as its own work takes.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorry.model.inputs import Inputs
from lorry.model.logits import Logits
from lorry.model.native import structs
from lorry.model.native.gains import BoundGains
from lorry_adapters.lora.plan import Plan

Bound = Mapping[tuple[int, float], BoundGains]
"""By (slot, scale), of the adapters that do more than add a pair."""

Rope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions [1, T] to cosines and sines [1, T, head size]."""


class Angles:
    """Cosines and sines of positions, computed once each."""

    def __init__(self, rope: Rope) -> None:
        self._rope = rope
        self._cos: list[bytes] = []
        self._sin: list[bytes] = []

    def of(self, positions: Sequence[int]) -> tuple[array[float], array[float]]:
        """[T, head size / 2] each; both halves of a head turn alike."""
        needed = max(positions) + 1
        if needed > len(self._cos):
            ids_1T = torch.arange(max(256, 2 * needed)).unsqueeze(0)
            self._cos, self._sin = (
                [row.tobytes() for row in one[0, :, : one.shape[-1] // 2].contiguous().numpy()]
                for one in self._rope(ids_1T)
            )
        cos, sin = self._cos, self._sin
        return (
            array("f", b"".join([cos[at] for at in positions])),
            array("f", b"".join([sin[at] for at in positions])),
        )


class Call:
    """One step's arguments; they live as long as this."""

    def __init__(
        self,
        inputs: Inputs,
        angles: Angles,
        vocab: int,
        gains: Bound,
        own: Mapping[int, int],
        seen_KH: Tensor | None = None,
    ) -> None:
        """`own`: addresses of embeddings, by the token that has one instead of the table's; the
        caller keeps them. `seen_KH`: gets what the head is given."""
        size = inputs.attention.block_size
        self.ids: list[int] = []
        self.blocks: list[int] = []
        """Of the cache, as far as each row sees it."""
        self.longest = 0
        """Tokens that a row sees."""
        self.wanted: list[int] = inputs.wanted_K.tolist()
        positions: list[int] = []
        rows: list[int] = []
        cell: list[int] = []
        starts = [0]
        for index, row in enumerate(inputs.attention.rows):
            end = row.start + len(row.token_ids)
            seen = row.blocks[: -(-end // size)]
            self.ids += row.token_ids
            positions += range(row.start, end)
            rows += [index] * len(row.token_ids)
            cell += [seen[at // size] * size + at % size for at in range(row.start, end)]
            self.blocks += seen
            starts.append(len(self.blocks) * size)
            self.longest = max(self.longest, end)
        firsts = np.array([block * size for block in self.blocks], dtype=np.int32)
        cells: NDArray[np.int32] = np.add.outer(firsts, np.arange(size, dtype=np.int32))
        tokens = [array("i", values) for values in (self.ids, positions, cell, rows, self.wanted)]
        context = array("q", starts)
        cos, sin = angles.of(positions)
        body = PairArrays(inputs.body, gains)
        head = body if inputs.head is inputs.body else PairArrays(inputs.head, gains)
        self._logits_KV = np.empty((len(self.wanted), vocab), dtype=np.float32)
        self._norm_K = np.empty(len(self.wanted), dtype=np.float32)
        self._best_K = np.empty(len(self.wanted), dtype=np.int32)
        rows_at = array("Q", [own.get(token, 0) for token in range(len(self.ids))] if own else [])
        self.slots = (body.slots,) if head is body else (body.slots, head.slots)
        """Of the adapters of the body and of the head."""
        self._keep = (cells, tokens, context, cos, sin, body, head, gains, rows_at)
        at = [_address(values) for values in tokens]
        self.struct = structs.Step(
            num_tokens=len(self.ids),
            num_wanted=len(self.wanted),
            ids=at[0],
            position=at[1],
            cell=at[2],
            row=at[3],
            own=_address(rows_at) if own else None,
            context=_address(context),
            cells=cells.ctypes.data,
            cos=_address(cos),
            sin=_address(sin),
            body=body.struct,
            head=head.struct,
            wanted=at[4],
            seen=None if seen_KH is None else seen_KH.data_ptr(),
            logits=self._logits_KV.ctypes.data,
            norm=self._norm_K.ctypes.data,
            best=self._best_K.ctypes.data,
        )

    def logits(self) -> Logits:
        """Once the step has run."""
        norm_K, best_K = torch.from_numpy(self._norm_K), torch.from_numpy(self._best_K)
        return Logits(torch.from_numpy(self._logits_KV), norm_K, best_K.long())


class PairArrays:
    """A plan as `step.h` wants it; keeps its arrays."""

    def __init__(self, plan: Plan, gains: Bound) -> None:
        slots = [slot for slot, _, _ in plan.pairs]
        starts = [i for i, slot in enumerate(slots) if i == 0 or slots[i - 1] != slot]
        self._token = array("i", [token for _, token, _ in plan.pairs])
        self._scale = array("f", [scale for _, _, scale in plan.pairs])
        self.slots = array("i", [slots[i] for i in starts])
        self._start = array("i", [*starts, len(slots)])
        self.struct = structs.Pairs(
            len(slots),
            len(starts),
            _address(self._token),
            _address(self.slots),
            _address(self._start),
            _address(self._scale),
        )
        if gains:
            self._add(plan, gains)

    def _add(self, plan: Plan, gains: Bound) -> None:
        """What a step needs to go through the tokens that have gains, one by one."""
        uses: dict[int, list[int]] = {}
        addresses = []
        for pair, (slot, token, scale) in enumerate(plan.pairs):
            mine = gains.get((slot, scale))
            addresses.append(0 if mine is None else mine.address)
            if mine is not None:
                uses.setdefault(token, []).append(pair)
        gained = sorted(uses)
        counts = Counter(token for _, token, _ in plan.pairs)
        self._gain = array("Q", addresses)
        self._gained = array("i", gained)
        self._alone = array("i", [counts[token] == 1 for token in gained])
        self._uses = array("i", [pair for token in gained for pair in uses[token]])
        self._first = array("i", accumulate((len(uses[token]) for token in gained), initial=0))
        self.struct.num_gained = len(gained)
        self.struct.gained = _address(self._gained)
        self.struct.alone = _address(self._alone)
        self.struct.first = _address(self._first)
        self.struct.uses = _address(self._uses)
        self.struct.gain = _address(self._gain)


def _address(values: array[int] | array[float]) -> int:
    return values.buffer_info()[0]
