"""A plan says of every module exactly which token wants which slot at which scale."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry_adapters.lora.plan import MAX_PADDING, ModulePlan, Shape, build_plan

NUM_SLOTS = 6
CPU = torch.device("cpu")

scales = st.floats(0.125, 4, width=16) | st.floats(-4, -0.125, width=16) | st.just(1.0)
uses = st.lists(st.tuples(st.integers(1, NUM_SLOTS), scales), max_size=3)
rows = st.lists(st.tuples(st.integers(0, 5), uses), min_size=1, max_size=10)
ranks = st.lists(st.sampled_from([0, 0, 4, 8]), min_size=NUM_SLOTS + 1, max_size=NUM_SLOTS + 1).map(
    tuple
)
digests = st.none() | st.permutations("abcdef").map(lambda d: dict(enumerate(d, start=1)))


def pairs_of(plan: ModulePlan) -> list[tuple[int, int, float]]:
    """The plan read back: (slot, token, scale)."""
    pairs = []
    for segment in plan.segments:
        for pair in range(segment.start, segment.stop):
            token = plan.first_token + pair if plan.token_P is None else int(plan.token_P[pair])
            scale = 1.0 if plan.scale_P1 is None else float(plan.scale_P1[pair, 0])
            pairs.append((segment.slot, token, scale))
    return pairs


@settings(max_examples=300)
@given(rows=rows, ranks=ranks, digests=digests)
def test_every_pair_once_and_nothing_else(
    rows: list[tuple[int, list[tuple[int, float]]]],
    ranks: tuple[int, ...],
    digests: dict[int, str] | None,
) -> None:
    digest_of = None if digests is None else digests.__getitem__
    made = build_plan(rows, dtype=torch.float32, device=CPU, digest_of=digest_of)
    assert made.num_tokens == sum(count for count, _ in rows)
    wanted, first = [], 0
    for count, row_uses in rows:
        wanted += [
            (slot, first + i, scale)
            for slot, scale in row_uses
            if ranks[slot]
            for i in range(count)
        ]
        first += count
    plan = made.for_ranks(ranks)
    assert made.for_ranks(tuple(ranks)) is plan
    if plan is None:
        assert wanted == []
        return
    assert sorted(pairs_of(plan)) == sorted(wanted)
    check_shape(plan, ranks)


def check_shape(plan: ModulePlan, ranks: tuple[int, ...]) -> None:
    """What the kernels rely on."""
    assert [s.start for s in plan.segments] == [0, *(s.stop for s in plan.segments[:-1])]
    assert all(s.start < s.stop for s in plan.segments)
    assert plan.num_pairs == plan.segments[-1].stop
    slots = [segment.slot for segment in plan.segments]
    assert len(set(slots)) == len(slots)
    assert plan.slots_N.tolist() == slots
    assert [segment.rank for segment in plan.segments] == [ranks[slot] for slot in slots]
    assert plan.rank == max(segment.rank for segment in plan.segments)
    assert plan.first_slot == slots[0]
    assert plan.contiguous == (slots == list(range(slots[0], slots[0] + len(slots))))
    counts = [segment.stop - segment.start for segment in plan.segments]
    if plan.token_P is not None:
        assert plan.token_P.tolist() != list(
            range(plan.first_token, plan.first_token + plan.num_pairs)
        )
    match plan.shape:
        case Shape.UNIFORM:
            assert plan.token_P is None
            assert set(counts) == {plan.width}
        case Shape.PADDED:
            assert plan.place_P is not None
            places = plan.place_P.tolist()
            assert len(set(places)) == len(places)
            for n, segment in enumerate(plan.segments):
                grid = places[segment.start : segment.stop]
                assert all(n * plan.width <= place < (n + 1) * plan.width for place in grid)
            assert len(slots) * plan.width <= MAX_PADDING * plan.num_pairs
        case Shape.SEGMENTS:
            assert len(slots) == 1 or len(slots) * plan.width > MAX_PADDING * plan.num_pairs


@settings(max_examples=100)
@given(
    row=st.lists(st.tuples(st.integers(1, NUM_SLOTS), scales), min_size=2, max_size=4,
                 unique_by=lambda use: use[0]),
    others=rows,
    move=st.permutations(range(1, NUM_SLOTS + 1)),
)  # fmt: skip
def test_with_digests_the_order_of_a_sum_does_not_depend_on_the_slots(
    row: list[tuple[int, float]],
    others: list[tuple[int, list[tuple[int, float]]]],
    move: list[int],
) -> None:
    """The same adapters in other slots are added up in the same order."""

    def order(slot_of: list[int], rows: list[tuple[int, list[tuple[int, float]]]]) -> list[int]:
        moved = [(n, [(slot_of[adapter - 1], scale) for adapter, scale in u]) for n, u in rows]
        digests = {slot: chr(96 + adapter) for adapter, slot in enumerate(slot_of, start=1)}
        made = build_plan(moved, dtype=torch.float32, device=CPU, digest_of=digests.__getitem__)
        return [slot_of.index(slot) + 1 for slot, token, _ in made.pairs if token == 0]

    here = list(range(1, NUM_SLOTS + 1))
    assert order(here, [(1, row)]) == order(move, [(1, row), *others])


def test_neighbours_with_one_adapter_at_one_scale_are_one_run() -> None:
    """A prompt costs as much as a token, and so do singles that share an adapter."""
    rows = [
        (1, [(2, 0.5)]),
        (1, [(2, 0.5)]),
        (1, [(2, 1.0)]),
        (1000, [(3, 1.0), (2, 1.0)]),
        (9, []),
    ]
    made = build_plan(rows, dtype=torch.float32, device=CPU)
    assert made.runs == ((2, 0, 2, 0.5), (2, 2, 1001, 1.0), (3, 3, 1000, 1.0))
    assert (made.num_tokens, made.num_pairs, made.slots) == (1012, 2003, (2, 3))
