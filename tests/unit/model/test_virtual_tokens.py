"""Virtual tokens in their places: in the cache, and among the embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorry.core import Batch, Row, SlotUse
from lorry.model.inputs import Inputs, build_inputs
from lorry.model.kv_cache import KVCache, LayerShape
from lorry.model.virtual_tokens import VirtualTokenSlots
from lorry_adapters.errors import AdapterBroken
from lorry_adapters.lora.prompt import KeyValuePrefix, PromptEmbeddings

CPU = torch.device("cpu")
HEADS, SIZE, BLOCK = 2, 3, 4


@pytest.fixture
def cache() -> KVCache:
    shapes = {nn.Identity(): LayerShape(HEADS, SIZE, SIZE) for _ in range(2)}
    return KVCache(shapes, num_blocks=5, block_size=BLOCK, dtype=torch.float32, device=CPU)


def prefix(count: int, layers: int = 2, heads: int = HEADS) -> KeyValuePrefix:
    return KeyValuePrefix(torch.randn(layers, 2, count, heads, SIZE))


def inputs(*rows: Row) -> Inputs:
    return build_inputs(
        Batch(rows), block_size=BLOCK, dtype=torch.float32, device=CPU, digest_of=str
    )


def row(start: int, count: int, slot: int, *, virtual: int = 0) -> Row:
    tokens = [0] * virtual + [9] * (count - virtual)
    return Row("r", tokens, start, [3, 1, 0], (SlotUse(slot, 1.0),), None, virtual=virtual)


def test_a_prefix_goes_to_its_sequences_cells(cache: KVCache) -> None:
    prompts = VirtualTokenSlots(cache, torch.float32, CPU)
    mine = prefix(5)
    prompts.place(2, mine)
    prompts.fill(inputs(row(5, 2, 2)).attention)
    cells = [12, 13, 14, 15, 4]
    for layer, kv in enumerate(cache.layers):
        assert torch.equal(kv.k_NHD[cells], mine.cells_L2NKD[layer, 0])
        assert torch.equal(kv.v_NHD[cells], mine.cells_L2NKD[layer, 1])
        rest = [cell for cell in range(20) if cell not in cells]
        assert not kv.k_NHD[rest].any()
        assert not kv.v_NHD[rest].any()


@pytest.mark.parametrize("other", [row(7, 1, 2), row(5, 2, 1), row(4, 3, 2)])
def test_only_where_a_row_begins_behind_it(other: Row, cache: KVCache) -> None:
    prompts = VirtualTokenSlots(cache, torch.float32, CPU)
    prompts.place(2, prefix(5))
    prompts.fill(inputs(other).attention)
    assert not any(kv.k_NHD.any() or kv.v_NHD.any() for kv in cache.layers)


def test_a_slot_that_changes_hands_has_no_prefix(cache: KVCache) -> None:
    prompts = VirtualTokenSlots(cache, torch.float32, CPU)
    for after in (None, PromptEmbeddings(torch.randn(5, 7))):
        prompts.place(2, prefix(5))
        prompts.place(2, after)
        prompts.fill(inputs(row(5, 2, 2)).attention)
    assert not any(kv.k_NHD.any() for kv in cache.layers)


@pytest.mark.parametrize("wrong", [prefix(5, layers=3), prefix(5, heads=1)])
def test_a_prefix_of_another_shape_is_refused(wrong: KeyValuePrefix, cache: KVCache) -> None:
    with pytest.raises(AdapterBroken, match="remove the adapter"):
        VirtualTokenSlots(cache, torch.float32, CPU).place(1, wrong)


def test_embeddings_take_their_places(cache: KVCache) -> None:
    """Packed: the single row first, then two virtual tokens and one of the prompt, then the
    last virtual ones of another sequence."""
    prompts = VirtualTokenSlots(cache, torch.float32, CPU)
    one, two = torch.randn(2, 7), torch.randn(5, 7)
    prompts.place(1, PromptEmbeddings(one))
    prompts.place(2, PromptEmbeddings(two))
    made = inputs(row(0, 3, 1, virtual=2), row(2, 4, 2, virtual=3), row(9, 1, 1))
    before = torch.randn(1, 8, 7)
    kept = before.clone()
    put = prompts.put(before, made.virtual)[0]
    assert torch.equal(before, kept)
    assert torch.equal(put[1:3], one)
    assert torch.equal(put[4:7], two[2:5])
    assert torch.equal(put[[0, 3, 7]], kept[0, [0, 3, 7]])


def test_embeddings_where_rows_are_padded(cache: KVCache) -> None:
    prompts = VirtualTokenSlots(cache, torch.float32, CPU)
    rows = torch.randn(2, 7)
    prompts.place(1, PromptEmbeddings(rows))
    made = inputs(row(0, 3, 1, virtual=2), row(0, 2, 1, virtual=2))
    before = torch.randn(1, 4, 7)
    # The first row lies at 1 to 3 of 4, the second in another pass.
    put = prompts.put(before, made.virtual, {0: 1, 1: 2, 2: 3})[0]
    assert torch.equal(put[1:3], rows)
    assert torch.equal(put[[0, 3]], before[0, [0, 3]])
