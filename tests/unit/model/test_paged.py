"""Paged attention as a Triton kernel against what `attention` computes with torch."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lorry.core import Row
from lorry.model.attention import AttentionStep, attend, attending
from lorry.model.inputs import AttentionPlan
from lorry.model.kv_cache import KVCache, LayerShape
from lorry.model.sight import EVERYTHING, Sight
from support.device import DEVICE

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")

from lorry.model import paged
from lorry.model.paged import SPAN, PagedSingles, tables_of

BLOCK_SIZE, NUM_BLOCKS = 16, 160

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Values are of size 1: sums in another order, weights and results rounded; under a soft cap
torch's operations round the scores as well."""


@dataclass(frozen=True)
class Heads:
    """One layer's shape, as a family of models has it."""

    queries: int
    keys: int
    size: int
    value_size: int
    sight: Sight = EVERYTHING
    softcap: float | None = None


FAMILIES = {
    "smollm2": Heads(9, 3, 64, 64),
    "llama 8b": Heads(8, 2, 128, 128),
    "mistral": Heads(8, 2, 32, 32, Sight(window=40)),
    "a window longer than a part": Heads(2, 1, 16, 16, Sight(window=SPAN + 70)),
    "gemma2": Heads(4, 2, 32, 32, Sight(window=24), softcap=5.0),
    "llama 4": Heads(4, 2, 32, 32, Sight(chunk=32)),
    "a chunk longer than a part": Heads(2, 1, 16, 16, Sight(chunk=SPAN + 70)),
    "phi": Heads(3, 3, 80, 80),
    "mla": Heads(4, 4, 48, 24),
    "one key head": Heads(20, 1, 8, 8),
}


class Layer:
    """A cache full of numbers, and rows whose blocks lie anywhere in it."""

    def __init__(self, heads: Heads, dtype: torch.dtype, lengths: list[int], seed: int) -> None:
        self.heads, self.module = heads, nn.Identity()
        shape = LayerShape(heads.keys, heads.size, heads.value_size, heads.sight)
        self.cache = KVCache(
            {self.module: shape},
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            dtype=dtype,
            device=DEVICE,
        )
        self._dice = torch.Generator().manual_seed(seed)
        kv = self.cache.layer(self.module)
        for cells in (kv.k_NHD, kv.v_NHD):
            cells.copy_(torch.randn(cells.shape, generator=self._dice))
        free = list(range(NUM_BLOCKS))
        random.Random(seed).shuffle(free)
        self.rows = []
        for index, length in enumerate(lengths):
            blocks = [free.pop() for _ in range(-(-length // BLOCK_SIZE))]
            self.rows.append(Row(str(index), [0], length - 1, blocks, (), None))
        self.q_1QTD, self.k_1HTD, self.v_1HTD = (
            torch.randn(1, count, len(lengths), size, generator=self._dice).to(DEVICE, dtype)
            for count, size in (
                (heads.queries, heads.size),
                (heads.keys, heads.size),
                (heads.keys, heads.value_size),
            )
        )

    def attend(self, *, kernel: bool, only: int | None = None) -> Tensor:
        """`[B, Q, V]` of all rows, or of one of them alone."""
        part = slice(None) if only is None else slice(only, only + 1)
        rows = tuple(self.rows[part])
        cells = [row.blocks[-1] * BLOCK_SIZE + row.start % BLOCK_SIZE for row in rows]
        plan = AttentionPlan(
            rows, len(rows), BLOCK_SIZE, DEVICE, torch.tensor(cells, device=DEVICE), ()
        )
        singles = PagedSingles(tables_of(plan)) if kernel else None
        with attending(AttentionStep(plan, self.cache, singles)):
            out_1TQV, _ = attend(
                self.module,
                self.q_1QTD[:, :, part],
                self.k_1HTD[:, :, part],
                self.v_1HTD[:, :, part],
                None,
                scaling=0.3,
                softcap=self.heads.softcap,
            )
        return out_1TQV[0].cpu()


def check(layer: Layer, dtype: torch.dtype) -> None:
    mine, theirs = layer.attend(kernel=True), layer.attend(kernel=False)
    assert mine.shape == theirs.shape and mine.dtype is dtype
    assert float((mine.float() - theirs.float()).abs().max()) <= TOLERANCE[dtype] * max(
        1.0, float(theirs.abs().max())
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_grid(family: str, dtype: torch.dtype) -> None:
    check(Layer(FAMILIES[family], dtype, [1, 15, 16, 17, 64, 90, SPAN + 100], 1), dtype)


@settings(max_examples=25)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    lengths=st.lists(st.integers(1, 130), min_size=1, max_size=4),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1000),
)
def test_any_contexts(family: str, lengths: list[int], dtype: torch.dtype, seed: int) -> None:
    check(Layer(FAMILIES[family], dtype, lengths, seed), dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("family", ["smollm2", "gemma2"])
def test_a_rows_bits_do_not_depend_on_its_neighbours(family: str, dtype: torch.dtype) -> None:
    layer = Layer(FAMILIES[family], dtype, [33, SPAN + 1, 7, 2 * SPAN], 2)
    together = layer.attend(kernel=True)
    for index in range(len(layer.rows)):
        assert torch.equal(together[index : index + 1], layer.attend(kernel=True, only=index))


# The interpreter's numpy remarks on it; a GPU does not.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nothing_beyond_a_rows_own_context_is_read(poison: float) -> None:
    """Neither a neighbour's cells, nor what its own last block held before, nor what has left
    its window."""
    layer = Layer(FAMILIES["mistral"], torch.float32, [100, 30], 3)
    expected = layer.attend(kernel=True)
    kv, row = layer.cache.layer(layer.module), layer.rows[0]
    seen = [row.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(60, 100)]
    others = torch.ones(len(kv.k_NHD), dtype=torch.bool)
    others[seen] = False
    kv.k_NHD[others.to(DEVICE)] = poison
    kv.v_NHD[others.to(DEVICE)] = poison
    poisoned = layer.attend(kernel=True)
    assert torch.equal(poisoned[0], expected[0])
    assert not poisoned[1].isfinite().any()


def test_a_row_that_fills_up_has_zeros() -> None:
    layer = Layer(FAMILIES["smollm2"], torch.float32, [20, 5], 4)
    plan = AttentionPlan(
        tuple(layer.rows), 2, BLOCK_SIZE, DEVICE, torch.zeros(0, dtype=torch.int64), ()
    )
    tables = tables_of(plan)
    tables.length_B[1] = 0
    kv = layer.cache.layer(layer.module)
    q_BQD = layer.q_1QTD[0].transpose(0, 1)
    made = PagedSingles(tables)(q_BQD, kv, scale=1.0, softcap=None, sight=Sight())
    assert made[0].isfinite().all() and made[0].abs().sum() > 0
    assert made[1].abs().sum() == 0


def test_a_large_key_takes_fewer_at_a_time() -> None:
    assert [paged.keys_at_once(size) for size in (64, 256, 512, 1024, 4096)] == [64, 64, 32, 16, 16]
    assert all(SPAN % paged.keys_at_once(size) == 0 for size in (64, 256, 512, 1024, 4096))
