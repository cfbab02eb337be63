"""The table that a GPU's kernels read: every pair once, and no two writers of one token."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry_adapters.lora.kernels.table import TILE, Pair, lay_out, table_of
from lorry_adapters.lora.plan import build_plan

SLOTS = 5
uses = st.lists(
    st.tuples(st.integers(1, SLOTS), st.sampled_from([0.5, 1.0, -2.0])),
    max_size=3,
    unique_by=lambda use: use[0],
)
rows = st.lists(st.tuples(st.integers(1, 40), uses), max_size=10)


def pairs_of(rows: list[tuple[int, list[tuple[int, float]]]]) -> tuple[Pair, ...]:
    digests = {slot: "cabed"[slot - 1] for slot in range(1, SLOTS + 1)}
    cpu = torch.device("cpu")
    return build_plan(rows, dtype=torch.float32, device=cpu, digest_of=digests.__getitem__).pairs


@settings(max_examples=200)
@given(rows=rows)
def test_every_pair_once_in_tiles_of_one_slot(
    rows: list[tuple[int, list[tuple[int, float]]]],
) -> None:
    pairs = pairs_of(rows)
    made = lay_out(pairs)
    found = []
    for slot, first, stop in made.tiles:
        assert 1 <= stop - first <= TILE
        found += [(slot, made.tokens[p], made.scales[p]) for p in range(first, stop)]
    assert sorted(found) == sorted(pairs)
    # Tile by tile, pair by pair, layer by layer: nothing left out, nothing twice.
    assert [first for _, first, _ in made.tiles] == [0, *(stop for *_, stop in made.tiles)][:-1]
    assert [first for first, _ in made.spans] == [0, *(stop for _, stop in made.spans)][:-1]
    assert (made.spans[-1][1] if made.spans else 0) == len(made.tiles)


@settings(max_examples=200)
@given(rows=rows)
def test_a_layer_holds_a_token_once_and_layers_keep_the_order(
    rows: list[tuple[int, list[tuple[int, float]]]],
) -> None:
    pairs = pairs_of(rows)
    made = lay_out(pairs)
    order: dict[int, list[int]] = {}
    for first_tile, stop_tile in made.spans:
        tiles = made.tiles[first_tile:stop_tile]
        here = [(slot, made.tokens[p]) for slot, a, b in tiles for p in range(a, b)]
        tokens = [token for _, token in here]
        assert len(set(tokens)) == len(tokens)
        for slot, token in here:
            order.setdefault(token, []).append(slot)
    wanted: dict[int, list[int]] = {}
    for slot, token, _ in pairs:
        wanted.setdefault(token, []).append(slot)
    assert order == wanted


def test_tiles_are_as_full_as_they_can_be() -> None:
    made = lay_out([(1, token, 1.0) for token in range(2 * TILE + 1)])
    assert made.tiles == [(1, 0, TILE), (1, TILE, 2 * TILE), (1, 2 * TILE, 2 * TILE + 1)]
    assert made.spans == [(0, 3)]


def test_in_device_memory() -> None:
    cpu = torch.device("cpu")
    table = table_of(build_plan([(2, [(3, 0.5)])], dtype=torch.bfloat16, device=cpu))
    assert table.tiles_X3.tolist() == [[3, 0, 2]]
    assert table.token_P.tolist() == [0, 1]
    # Not in the type of the activations: a scale is never rounded.
    assert table.scale_P.dtype is torch.float32
    empty = table_of(build_plan([(2, [])], dtype=torch.bfloat16, device=cpu))
    assert (empty.num_tiles, empty.num_pairs, empty.spans) == (0, 0, ())
