"""Virtual tokens on the device: the prompts and prefixes of the adapters in the slots.

A row whose adapter brings embeddings carries virtual tokens, whose rows in the embedding
table's output are replaced. A row whose adapter brings a prefix begins behind it, and the
prefix's keys and values are copied to its cells before the model runs, the first time and
after every preemption.

Letters: N virtual tokens, M of them in this step, X tokens, H embedding width, L layers,
K key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorry.core import Row
from lorry.model.guard import require
from lorry.model.inputs import AttentionPlan, VirtualRun
from lorry.model.kv_cache import KVCache
from lorry_adapters.errors import AdapterBroken
from lorry_adapters.lora.prompt import KeyValuePrefix, PromptEmbeddings, VirtualTokens


class VirtualTokenSlots:
    """By slot. Engine thread only."""

    def __init__(self, cache: KVCache, dtype: torch.dtype, device: torch.device) -> None:
        self._cache = cache
        self._dtype = dtype
        self._device = device
        self._rows_NH: dict[int, Tensor] = {}
        self._cells_L2NKD: dict[int, Tensor] = {}

    def place(self, slot: int, prompt: VirtualTokens | None) -> None:
        """Fill `slot`; None empties it.

        Raises:
            AdapterBroken: the cache's layers have other shapes than the prefix.
        """
        self._rows_NH.pop(slot, None)
        self._cells_L2NKD.pop(slot, None)
        match prompt:
            case PromptEmbeddings(rows_NH):
                self._rows_NH[slot] = rows_NH.to(self._device, self._dtype).contiguous()
            case KeyValuePrefix(cells_L2NKD):
                self._check(cells_L2NKD)
                dtype = self._cache.dtype if self._cache.dtype.is_floating_point else self._dtype
                self._cells_L2NKD[slot] = cells_L2NKD.to(self._device, dtype)

    def fill(self, attention: AttentionPlan) -> None:
        """Put the prefix of every row that begins behind one in the cache."""
        if not self._cells_L2NKD:
            return
        for row in attention.rows:
            for cells_L2NKD in self._of(row, self._cells_L2NKD):
                if row.start == cells_L2NKD.shape[2]:
                    where_N = attention.cells_before(row).to(self._device)
                    for kv, (k_NKD, v_NKD) in zip(self._cache.layers, cells_L2NKD, strict=True):
                        kv.keys.write(where_N, k_NKD)
                        kv.values.write(where_N, v_NKD)

    def put(
        self,
        embeddings: Tensor,
        runs: Sequence[VirtualRun],
        places: Mapping[int, int] | None = None,
    ) -> Tensor:
        """`embeddings` `[.., H]` of all tokens, with the virtual ones' own in their places.

        `places`: where each token of the packed row lies among them, if not where it is
        there; runs that are not in it are left out.
        """
        put = embeddings.clone()
        rows_XH = put.view(-1, put.shape[-1])
        for run in runs:
            first = run.first if places is None else places.get(run.first)
            if first is not None:
                (rows_NH,) = self._of(run.row, self._rows_NH)
                part_MH = rows_NH[run.start : run.start + run.count]
                rows_XH[first : first + run.count] = part_MH.to(rows_XH.dtype)
        return put

    def addresses(self, runs: Sequence[VirtualRun], width: int) -> dict[int, int]:
        """Where the embedding of each virtual token lies, by its place in the packed row: fp32
        in host memory, until its slot is filled anew. `width`: numbers that are read of each."""
        found: dict[int, int] = {}
        for run in runs:
            (rows_NH,) = self._of(run.row, self._rows_NH)
            require(
                rows_NH.dtype is torch.float32
                and rows_NH.is_contiguous()
                and rows_NH.device.type == "cpu",
                f"virtual tokens of {rows_NH.dtype} on {rows_NH.device} where float32 is read",
            )
            end = run.start + run.count
            require(rows_NH.shape[1] == width, f"embeddings of {rows_NH.shape[1]}, not {width}")
            require(end <= len(rows_NH), f"virtual tokens up to {end} of {len(rows_NH)}")
            size = rows_NH.shape[1] * rows_NH.element_size()
            for at in range(run.count):
                found[run.first + at] = rows_NH.data_ptr() + (run.start + at) * size
        return found

    @staticmethod
    def _of(row: Row, table: dict[int, Tensor]) -> list[Tensor]:
        return [table[use.slot] for use in row.adapters if use.slot in table]

    def _check(self, cells_L2NKD: Tensor) -> None:
        layers, _, _, heads, size = cells_L2NKD.shape
        found = [(*kv.k_NHD.shape[1:], *kv.v_NHD.shape[1:]) for kv in self._cache.layers]
        if found != [(heads, size, heads, size)] * layers:
            raise AdapterBroken(
                f"the prefix has {layers} layers of {heads} heads of {size} numbers, and the cache "
                "of this base has others; remove the adapter"
            )
