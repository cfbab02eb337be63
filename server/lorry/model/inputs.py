"""A batch as tensors: tokens packed in one row, and for attention, who sees what.

Rows that add one token are *singles*: they share one padded attention call a
layer. Rows that add several (prompts, or chunks of them) get a call each. The
index tensors are built once a step; layers that see less than all ask for their own.

Letters: T packed tokens, B single rows, L longest context of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorry.core import Batch, Pooling, Row
from lorry.model.kv_cache import Cells
from lorry.model.sight import Sight
from lorry_adapters.lora.plan import Plan, Uses, build_plan

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Several new tokens of one sequence."""

    first: int
    """Index of the first in the packed row."""
    count: int
    start: int
    """Absolute position of the first."""
    context_L: Tensor
    """int64, cache rows of tokens 0 to start + count - 1."""
    first_cell: int | None
    """The first of them, if they are neighbours in this order."""

    def read(self, cells: Cells, begin: int, dtype: torch.dtype) -> Tensor:
        """`[L, H, D]`, of the tokens from `begin` on: a view if their cells are neighbours and of
        this type."""
        if self.first_cell is None:
            return cells.read(self.context_L[begin:], dtype)
        end = self.first_cell + self.start + self.count
        return cells.part(self.first_cell + begin, end, dtype)


@dataclass(frozen=True, slots=True)
class Singles:
    """One new token each of B sequences; they are the first B of the packed row."""

    count: int
    context_BL: Tensor
    """int64, cache rows; padded with the sequence's own last."""
    mask_B11L: Tensor | None
    """bool, True where a cell may be seen; None where all may."""


@dataclass(slots=True, eq=False)
class AttentionPlan:
    """What every attention layer of a step needs to know."""

    rows: tuple[Row, ...]
    """In packed order: singles first."""
    num_singles: int
    block_size: int
    device: torch.device
    write_T: Tensor
    """int64, the cache row of each packed token."""
    chunks: tuple[Chunk, ...]
    _singles: dict[Sight, Singles] = field(default_factory=dict, repr=False)

    def cells_of(self, row: Row) -> NDArray[np.int64]:
        """Cache rows of everything that the last token of `row` sees."""
        return _cache_rows(row, 0, row.start + len(row.token_ids), self.block_size)

    def cells_before(self, row: Row) -> Tensor:
        """int64, cache rows of the positions before the first token of `row`."""
        cells = _cache_rows(row, 0, row.start, self.block_size)
        return torch.from_numpy(cells).to(self.device)

    def singles(self, sight: Sight) -> Singles:
        """The single rows' context, of which a layer sees so much."""
        try:
            return self._singles[sight]
        except KeyError:
            made = self._singles[sight] = self._build_singles(sight)
            return made

    def _build_singles(self, sight: Sight) -> Singles:
        contexts = []
        for row in self.rows[: self.num_singles]:
            begin = sight.begin(row.start)
            contexts.append(_cache_rows(row, begin, row.start + 1, self.block_size))
        lengths = [len(context) for context in contexts]
        longest = max(lengths)
        padded = np.empty((len(contexts), longest), dtype=np.int64)
        for place, context in enumerate(contexts):
            padded[place, : len(context)] = context
            # Masked, but read: 0 x NaN is NaN, so never another sequence's cell.
            padded[place, len(context) :] = context[-1]
        mask = None
        if min(lengths) != longest:
            cells = torch.arange(longest, device=self.device)
            lengths_B1 = torch.tensor(lengths, device=self.device).unsqueeze(1)
            mask = (cells < lengths_B1)[:, None, None, :]
        return Singles(
            self.num_singles,
            torch.from_numpy(padded).to(self.device),
            mask,
        )


@dataclass(frozen=True, slots=True)
class VirtualRun:
    """Neighbouring virtual tokens of one row."""

    row: Row
    first: int
    """Index of the first in the packed row."""
    start: int
    """Its position, and so its place among the adapter's."""
    count: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """One forward pass."""

    order: tuple[int, ...]
    """`order[i]` is the batch's row that lies i-th in the packed row."""
    ids_1T: Tensor
    positions_1T: Tensor
    attention: AttentionPlan
    body: Plan
    head: Plan
    """Over the tokens that the output head sees."""
    wanted_K: Tensor
    """int64, packed tokens whose logits are needed, ascending."""
    wanted: tuple[tuple[int, int], ...]
    """For each packed row: (first, count) of its logits among `wanted_K`."""
    virtual: tuple[VirtualRun, ...] = ()
    """Tokens whose embeddings are an adapter's; their ids are 0."""


def build_inputs(
    batch: Batch,
    *,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    digest_of: Callable[[int], str],
) -> Inputs:
    """`digest_of`: of the adapter in a slot."""
    # Singles by slot: neighbours in the packed row then share an adapter, and the
    # adapters' kernel reads tokens and slots without a gather.
    order = sorted(
        range(len(batch.rows)),
        key=lambda i: (
            len(batch.rows[i].token_ids) > 1,
            batch.rows[i].adapters[0].slot if batch.rows[i].adapters else 0,
        ),
    )
    rows = tuple(batch.rows[i] for i in order)
    # Of the single rows, which come first; each chunk has its own.
    ids: list[int] = []
    positions: list[int] = []
    write: list[int] = []
    parts: list[tuple[Ints, Ints, Ints]] = []
    num_tokens = 0
    wanted: list[int] = []
    wanted_rows: list[tuple[int, int]] = []
    body: list[tuple[int, Uses]] = []
    head: list[tuple[int, Uses]] = []
    virtual: list[VirtualRun] = []
    chunks: list[Chunk] = []
    for row in rows:
        first, count = num_tokens, len(row.token_ids)
        end = row.start + count
        num_tokens += count
        if count > 1:
            context = _cache_rows(row, 0, end, block_size)
            parts.append(
                (
                    np.array(row.token_ids, dtype=np.int64),
                    np.arange(row.start, end, dtype=np.int64),
                    context[row.start :],
                )
            )
            context_L = torch.from_numpy(context).to(device)
            begin = int(context[0])
            together = (np.diff(context) == 1).all()
            chunks.append(Chunk(first, count, row.start, context_L, begin if together else None))
        else:
            block, place = divmod(row.start, block_size)
            ids.append(row.token_ids[0])
            positions.append(row.start)
            write.append(row.blocks[block] * block_size + place)
        mine = _wanted_of(row)
        wanted_rows.append((len(wanted), len(mine)))
        wanted.extend(first + index for index in mine)
        body.extend(_uses_of(row, range(count)))
        head.extend(_uses_of(row, mine))
        if row.virtual:
            virtual.append(VirtualRun(row, first, row.start, row.virtual))

    # None of these gives the interpreter up, as torch's operations do: the event loop would take
    # it, with a step's worth of frames to send, while the model waits.
    def ints(values: Sequence[int], more: Sequence[Ints] = ()) -> Ints:
        array = np.array(values, dtype=np.int64)
        return np.concatenate([array, *more]) if more else array

    def there(array: Ints) -> Tensor:
        made = torch.from_numpy(array)
        return made if device.type == "cpu" else made.to(device)

    chunk_ids, chunk_positions, chunk_write = zip(*parts, strict=True) if parts else ((), (), ())

    body_plan = build_plan(body, dtype=dtype, device=device, digest_of=digest_of)
    return Inputs(
        order=tuple(order),
        ids_1T=there(ints(ids, chunk_ids)[None]),
        positions_1T=there(ints(positions, chunk_positions)[None]),
        attention=AttentionPlan(
            rows,
            len(rows) - len(chunks),
            block_size,
            device,
            there(ints(write, chunk_write)),
            tuple(chunks),
        ),
        body=body_plan,
        # The same tokens, when all of them are wanted: no need to plan twice.
        head=body_plan
        if head == body
        else build_plan(head, dtype=dtype, device=device, digest_of=digest_of),
        # A step of half prompts wants no logits; the head gets one token all the same,
        # so that no kernel meets an empty batch.
        wanted_K=there(ints(wanted or [0])),
        wanted=tuple(wanted_rows),
        virtual=tuple(virtual),
    )


def _cache_rows(row: Row, begin: int, end: int, block_size: int) -> NDArray[np.int64]:
    """Cache rows of the positions `begin` to `end` - 1 of a sequence."""
    first = begin // block_size
    blocks = np.asarray(row.blocks[first : -(-end // block_size)], dtype=np.int64)
    cells = blocks[:, None] * block_size + np.arange(block_size)
    return cells.reshape(-1)[begin - first * block_size : end - first * block_size]


def _wanted_of(row: Row) -> list[int]:
    """Tokens of this row, by place, whose logits are needed: those that predict a prompt
    token, and the last where the next token is to be sampled, with those of drafts. Of a
    pooled row, those whose hidden states are."""
    if row.pooling is not None:
        last = len(row.token_ids) - 1
        return list(range(row.virtual, last + 1)) if row.pooling is Pooling.MEAN else [last]
    count = 0 if row.prompt_targets is None else len(row.prompt_targets)
    wanted = list(range(row.virtual, row.virtual + count))
    if row.sample is not None:
        drawn = range(len(row.token_ids) - 1 - row.drafts, len(row.token_ids))
        wanted.extend(place for place in drawn if place not in wanted)
    return wanted


def _uses_of(row: Row, tokens: Sequence[int]) -> Iterator[tuple[int, Uses]]:
    """Runs of `tokens` (places in the row, ascending) with the same adapters: how many, and
    (slot, scale) of each. One run, but where an adapter counts from a later token on."""

    since = row.start
    if all(use.start <= since for use in row.adapters):
        yield len(tokens), [(use.slot, use.scale) for use in row.adapters]
        return
    bounds = [since, *sorted({use.start for use in row.adapters if use.start > since})]
    places = [0, *(bisect_left(tokens, bound - since) for bound in bounds[1:]), len(tokens)]
    for bound, begin, end in zip(bounds, places, places[1:], strict=False):
        yield end - begin, [(use.slot, use.scale) for use in row.adapters if use.start <= bound]
