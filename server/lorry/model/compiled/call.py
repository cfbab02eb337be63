"""A step as `step.h` wants it: the batch's rows as arrays, and room for what comes back.

Lists and `array`, hardly any numpy, and nothing of torch. The step before has driven
code and data out of the processor's caches, so every operation that this one has not
used yet costs some ten microseconds, whatever its size; and torch's give the interpreter
up, which the event loop then keeps for as long as its own work takes.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from ctypes import addressof
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorry.model.compiled import structs
from lorry.model.compiled.own_head import HeadArrays, HeadRun
from lorry.model.compiled.packed_vectors import BoundVectorDeltas
from lorry.model.compiled.widened import widened
from lorry.model.inputs import Inputs
from lorry.model.logits import Logits
from lorry_adapters.lora.plan import Plan

Bound = Mapping[tuple[int, float], BoundVectorDeltas]
"""By (slot, scale), of the adapters that do more than add a pair."""

Rope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions [1, T] to cosines and sines [1, T, A], each angle once."""


class Angles:
    """Cosines and sines of positions, computed once each."""

    def __init__(self, ropes: Sequence[Rope], longest: int) -> None:
        """`longest`: tokens of a sequence. Some kinds of angles change beyond."""
        self._ropes, self._longest = ropes, longest
        self._known = 0
        """Positions."""
        self._tables: list[tuple[bytes, bytes, int]] = []
        """Of each rope, with the bytes of one position."""

    def of(self, spans: Sequence[tuple[int, int]]) -> tuple[array[float], array[float]]:
        """[ropes, T, A] each, of the positions of each span (first, one past the last)."""
        needed = max([end for _, end in spans])
        if needed > self._known:
            self._known = max(needed, min(self._longest, max(256, 2 * needed)))
            ids_1T = torch.arange(self._known).unsqueeze(0)
            self._tables = [self._table(rope, ids_1T) for rope in self._ropes]
        all_cos, all_sin = [], []
        for cos, sin, size in self._tables:
            places = [(first * size, end * size) for first, end in spans]
            all_cos += [cos[first:end] for first, end in places]
            all_sin += [sin[first:end] for first, end in places]
        return array("f", b"".join(all_cos)), array("f", b"".join(all_sin))

    def _table(self, rope: Rope, ids_1T: Tensor) -> tuple[bytes, bytes, int]:
        cos, sin = (one[0].contiguous().numpy().tobytes() for one in rope(ids_1T))
        return cos, sin, len(cos) // self._known


class Call:
    """One step's arguments; they live as long as this."""

    def __init__(
        self,
        inputs: Inputs,
        angles: Angles,
        vocab: int,
        vectors: Bound,
        own: Mapping[int, int],
        seen_KH: Tensor | None = None,
        *,
        raw: Set[int] = frozenset(),
        heads: Sequence[HeadRun] = (),
    ) -> None:
        """`own`: addresses of embeddings, by the token that has one instead of the table's; the
        caller keeps them. `seen_KH`: gets what the head is given. `raw`: wanted
        tokens whose logits stay as the head answers, whatever the model makes of them. `heads`: of
        adapters' own."""
        size = inputs.attention.block_size
        self.ids: list[int] = []
        self.blocks: list[int] = []
        """Of the cache, as far as each row sees it."""
        self.longest = 0
        """Tokens that a row sees."""
        self.wanted: list[int] = inputs.wanted_K.tolist()
        spans: list[tuple[int, int]] = []
        positions, rows = array("i"), array("i")
        starts = [0]
        for index, row in enumerate(inputs.attention.rows):
            end = row.start + len(row.token_ids)
            seen = row.blocks[: -(-end // size)]
            self.ids += row.token_ids
            spans.append((row.start, end))
            if end - row.start == 1:
                positions.append(row.start)
                rows.append(index)
            else:
                positions.frombytes(_range(row.start, end))
                rows += array("i", [index]) * (end - row.start)
            self.blocks += seen
            starts.append(len(self.blocks) * size)
            self.longest = max(self.longest, end)
        firsts = np.array([block * size for block in self.blocks], dtype=np.int32)
        cells: NDArray[np.int32] = np.add.outer(firsts, np.arange(size, dtype=np.int32))
        ids, wanted = array("i", self.ids), array("i", self.wanted)
        cell = inputs.attention.write_T.numpy().astype(np.int32)
        context = array("q", starts)
        cos, sin = angles.of(spans)
        body = PairArrays(inputs.body, vectors)
        head = body if inputs.head is inputs.body else PairArrays(inputs.head, vectors)
        self._vocab = vocab
        self._logits_KV = np.empty((len(self.wanted), widened(vocab)), dtype=np.float32)
        self._norm_K = np.empty(len(self.wanted), dtype=np.float32)
        self._best_K = np.empty(len(self.wanted), dtype=np.int32)
        rows_at = array("Q", [own.get(token, 0) for token in range(len(self.ids))] if own else [])
        self.slots = (body.slots,) if head is body else (body.slots, head.slots)
        """Of the adapters of the body and of the head."""
        raw_K = array("i", [token in raw for token in range(len(self.wanted))] if raw else [])
        own_heads = HeadArrays(heads, len(self.wanted)) if heads else None
        self._keep = (
            own_heads,
            raw_K,
            cells,
            cell,
            ids,
            positions,
            rows,
            wanted,
            context,
            cos,
            sin,
            body,
            head,
            vectors,
            rows_at,
        )
        self.struct = structs.StepArguments(
            num_tokens=len(self.ids),
            num_wanted=len(self.wanted),
            ids=_address(ids),
            position=_address(positions),
            cell=cell.ctypes.data,
            row=_address(rows),
            own=_address(rows_at) if own else None,
            context=_address(context),
            cells=cells.ctypes.data,
            cos=_address(cos),
            sin=_address(sin),
            body=body.struct,
            head=head.struct,
            wanted=_address(wanted),
            seen=None if seen_KH is None else seen_KH.data_ptr(),
            logits=self._logits_KV.ctypes.data,
            norm=self._norm_K.ctypes.data,
            own_heads=None if own_heads is None else addressof(own_heads.structs),
            num_own_heads=len(heads),
            all_own=own_heads is not None and own_heads.replace_all,
            raw=_address(raw_K) if raw else None,
            best=self._best_K.ctypes.data,
        )

    def logits(self) -> Logits:
        """Once the step has run."""
        norm_K, best_K = torch.from_numpy(self._norm_K), torch.from_numpy(self._best_K)
        return Logits(torch.from_numpy(self._logits_KV[:, : self._vocab]), norm_K, best_K.long())


class PairArrays:
    """A plan as `step.h` wants it; keeps its arrays."""

    def __init__(self, plan: Plan, vectors: Bound) -> None:
        self._token, self._scale = array("i"), array("f")
        self.slots, self._start = array("i"), array("i")
        pair = 0
        before: int | None = None
        for slot, first, count, scale in plan.runs:
            if slot != before:
                self.slots.append(slot)
                self._start.append(pair)
                before = slot
            if count == 1:
                self._token.append(first)
                self._scale.append(scale)
            else:
                self._token.frombytes(_range(first, first + count))
                self._scale += array("f", [scale]) * count
            pair += count
        self._start.append(pair)
        self.struct = structs.Pairs(
            pair,
            len(self.slots),
            _address(self._token),
            _address(self.slots),
            _address(self._start),
            _address(self._scale),
        )
        if vectors:
            self._add(plan, vectors)

    def _add(self, plan: Plan, vectors: Bound) -> None:
        """What a step needs to go through the tokens that have vectors, one by one."""
        uses: dict[int, list[int]] = {}
        addresses = []
        for pair, (slot, token, scale) in enumerate(plan.pairs):
            mine = vectors.get((slot, scale))
            addresses.append(0 if mine is None else mine.address)
            if mine is not None:
                uses.setdefault(token, []).append(pair)
        vectored = sorted(uses)
        counts = Counter(token for _, token, _ in plan.pairs)
        self._vectors = array("Q", addresses)
        self._vectored = array("i", vectored)
        self._alone = array("i", [counts[token] == 1 for token in vectored])
        self._uses = array("i", [pair for token in vectored for pair in uses[token]])
        self._first = array("i", accumulate((len(uses[token]) for token in vectored), initial=0))
        self.struct.num_vectored = len(vectored)
        self.struct.vectored = _address(self._vectored)
        self.struct.alone = _address(self._alone)
        self.struct.first = _address(self._first)
        self.struct.uses = _address(self._uses)
        self.struct.vectors = _address(self._vectors)


def _range(first: int, end: int) -> bytes:
    return np.arange(first, end, dtype=np.int32).tobytes()


def _address(values: array[int] | array[float]) -> int:
    return values.buffer_info()[0]
