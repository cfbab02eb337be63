"""A linear of the base with slots: what it adds, what it leaves behind, what it never touches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.layers import LoraLinear, LoraModel
from lorry_adapters.lora.plan import Plan, Uses, build_plan
from lorry_adapters.lora.weights import AdapterWeights, LoraPair
from lorry_adapters.lora.wrapped import PlanHolder

IN, OUT, SLOTS, MAX_RANK = 24, 40, 4, 16
CPU = torch.device("cpu")
F32 = torch.float32


def pair(
    rank: int, seed: int, *, scaling: float = 0.5, size: tuple[int, int] = (IN, OUT)
) -> LoraPair:
    generator = torch.Generator().manual_seed(seed)
    a_RI = torch.randn(rank, size[0], generator=generator)
    b_OR = torch.randn(size[1], rank, generator=generator)
    return LoraPair(a_RI, b_OR, scaling)


def linear(dtype: torch.dtype = F32) -> tuple[LoraLinear, PlanHolder]:
    torch.manual_seed(0)
    holder = PlanHolder()
    layer = LoraLinear(
        nn.Linear(IN, OUT).to(dtype).requires_grad_(False),
        in_features=IN,
        out_features=OUT,
        num_slots=SLOTS,
        max_rank=MAX_RANK,
        dtype=dtype,
        device=CPU,
        holder=holder,
    )
    return layer, holder


def inputs(rows: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(1, rows, IN, generator=torch.Generator().manual_seed(9)).to(dtype)


def run(
    layer: LoraLinear, holder: PlanHolder, rows: Sequence[Uses], dtype: torch.dtype = F32
) -> Tensor:
    plan = build_plan([(1, uses) for uses in rows], dtype=dtype, device=CPU)
    with holder.holding(plan):
        out: Tensor = layer(inputs(len(rows), dtype))
    return out


def truth(layer: LoraLinear, rows: Sequence[Sequence[tuple[LoraPair, float]]]) -> Tensor:
    x_1TI = inputs(len(rows))
    y_1TO: Tensor = layer.base(x_1TI).clone()
    for token, uses in enumerate(rows):
        for one, scale in uses:
            y_1TO[0, token] += scale * one.scaling * (one.b_OR @ (one.a_RI @ x_1TI[0, token]))
    return y_1TO


# ---- what it adds


def test_without_a_plan_or_an_adapter_it_is_its_base() -> None:
    layer, holder = linear()
    x_1TI = inputs(3)
    assert torch.equal(layer(x_1TI), layer.base(x_1TI))
    assert torch.equal(run(layer, holder, [[(1, 1.0)], [], []]), layer.base(x_1TI))
    layer.place(1, pair(4, 1))
    assert torch.equal(layer(x_1TI), layer.base(x_1TI))
    assert torch.equal(run(layer, holder, [[], [], []]), layer.base(x_1TI))


def test_each_row_gets_its_own_adapters_at_its_own_scales() -> None:
    layer, holder = linear()
    a, b, c = pair(4, 1), pair(16, 2, scaling=2.0), pair(1, 3)
    for slot, one in enumerate((a, b, c), start=1):
        layer.place(slot, one)
    uses: list[Uses] = [[(1, 1.0)], [(2, 0.5)], [], [(3, -2.0), (1, 0.25)], [(2, 1.0)]]
    expected = truth(layer, [[(a, 1.0)], [(b, 0.5)], [], [(c, -2.0), (a, 0.25)], [(b, 1.0)]])
    torch.testing.assert_close(run(layer, holder, uses), expected, rtol=1e-5, atol=1e-4)


def test_half_precision_keeps_the_trained_strength_exact_until_it_is_stored() -> None:
    """alpha / r times B is rounded once; rounding B first and the product again would not be
    the same number."""
    layer, holder = linear(torch.bfloat16)
    one = LoraPair(torch.ones(1, IN), torch.full((OUT, 1), 1.0035), 3.0)
    layer.place(1, one)
    layer.base.weight.zero_()
    layer.base.bias.zero_()
    x_TI = torch.zeros(1, 1, IN, dtype=torch.bfloat16)
    x_TI[..., 0] = 1
    plan = build_plan([(1, [(1, 1.0)])], dtype=torch.bfloat16, device=CPU)
    with holder.holding(plan):
        got = layer(x_TI)
    assert set(got.flatten().tolist()) == {float(torch.tensor(3.0105, dtype=torch.bfloat16))}


def test_a_transposed_linear_takes_the_same_adapter() -> None:
    torch.manual_seed(1)
    holder = PlanHolder()
    layer = LoraLinear(
        Conv1D(OUT, IN).requires_grad_(False),
        in_features=IN,
        out_features=OUT,
        num_slots=SLOTS,
        max_rank=MAX_RANK,
        dtype=F32,
        device=CPU,
        holder=holder,
    )
    one = pair(4, 1)
    layer.place(2, one)
    expected = truth(layer, [[], [(one, 1.0)]])
    torch.testing.assert_close(run(layer, holder, [[], [(2, 1.0)]]), expected, rtol=1e-5, atol=1e-4)


def test_modeling_code_can_still_ask_for_weight_and_bias() -> None:
    layer, _ = linear()
    assert layer.weight is layer.base.weight
    assert layer.bias is layer.base.bias


# ---- what it leaves behind


COMPANION = 4
"""The slot of an adapter of full rank: beside it, a batch runs at the full rank, and
whatever lies in a slot beyond its own rank would count."""


def beside_a_large_one(layer: LoraLinear, holder: PlanHolder, slot: int) -> Tensor:
    return run(layer, holder, [[(slot, 1.0)], [(COMPANION, 1.0)]])[0, 0]


@settings(max_examples=40)
@given(ranks=st.lists(st.integers(0, MAX_RANK), min_size=1, max_size=6))
def test_whatever_a_slot_held_before_is_gone(ranks: list[int]) -> None:
    """Rank 0: the adapter that came does not have this module."""
    used, used_holder = linear()
    fresh, fresh_holder = linear()
    for layer in (used, fresh):
        layer.place(COMPANION, pair(MAX_RANK, 77))
    for seed, rank in enumerate(ranks):
        one = pair(rank, seed) if rank else None
        used.place(2, one)
    fresh.place(2, one)
    assert used.ranks == fresh.ranks
    assert torch.equal(
        beside_a_large_one(used, used_holder, 2), beside_a_large_one(fresh, fresh_holder, 2)
    )


def test_a_wild_adapter_leaves_no_trace() -> None:
    """Not even through a zero: 0 x inf is not 0."""
    layer, holder = linear()
    wild = LoraPair(torch.full((16, IN), 3e38), torch.full((OUT, 16), 3e38), 16.0)
    layer.place(2, wild)
    layer.place(COMPANION, pair(MAX_RANK, 77))
    assert not beside_a_large_one(layer, holder, 2).isfinite().all()
    tame = pair(2, 5)
    layer.place(2, tame)
    expected = truth(layer, [[(tame, 1.0)], []])[0, 0]
    torch.testing.assert_close(beside_a_large_one(layer, holder, 2), expected, rtol=1e-5, atol=1e-4)


def test_half_an_adapter_is_cleared_by_the_next() -> None:
    layer, holder = linear()
    layer.place(COMPANION, pair(MAX_RANK, 77))
    torn = LoraPair(torch.full((16, IN), 3e38), torch.zeros(OUT + 1, 16), 1.0)
    with pytest.raises(RuntimeError):
        layer.place(2, torn)
    tame = pair(2, 5)
    layer.place(2, tame)
    expected = truth(layer, [[(tame, 1.0)], []])[0, 0]
    torch.testing.assert_close(beside_a_large_one(layer, holder, 2), expected, rtol=1e-5, atol=1e-4)


def test_emptied_it_is_its_base_again() -> None:
    layer, holder = linear()
    layer.place(2, pair(8, 1))
    layer.place(2, None)
    assert layer.ranks == (0,) * (SLOTS + 1)
    assert torch.equal(run(layer, holder, [[(2, 1.0)]]), layer.base(inputs(1)))


@pytest.mark.parametrize("slot", [0, SLOTS + 1])
def test_only_its_own_slots_can_be_filled(slot: int) -> None:
    layer, _ = linear()
    with pytest.raises(ValueError, match=f"in slot {slot}, room"):
        layer.place(slot, pair(4, 1))


def test_more_than_the_largest_rank_does_not_go_in() -> None:
    layer, _ = linear()
    with pytest.raises(ValueError, match=f"rank {MAX_RANK + 1} in slot 1, room for {MAX_RANK}"):
        layer.place(1, pair(MAX_RANK + 1, 1))


def test_plans_do_not_nest_and_end_with_their_block() -> None:
    layer, holder = linear()
    layer.place(1, pair(4, 1))
    plan = build_plan([(1, [(1, 1.0)])], dtype=F32, device=CPU)
    with pytest.raises(ZeroDivisionError), holder.holding(plan):
        with pytest.raises(AssertionError), holder.holding(plan):
            pass
        raise ZeroDivisionError
    assert torch.equal(layer(inputs(1)), layer.base(inputs(1)))


# ---- a whole model


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(IN, IN, bias=False)
        self.second = nn.Linear(IN, IN, bias=False)
        self.norm = nn.LayerNorm(IN)
        self.head = nn.Linear(IN, OUT, bias=False)
        self.requires_grad_(False)

    def forward(self, x: Tensor, keep: slice) -> Tensor:
        y: Tensor = self.head(self.norm(self.second(self.first(x)))[:, keep])
        return y


def layout() -> BaseLayout:
    kinds = {
        "first": (ModuleKind.LINEAR, IN, IN),
        "second": (ModuleKind.LINEAR, IN, IN),
        "norm": (ModuleKind.OTHER, IN, IN),
        "head": (ModuleKind.LINEAR, IN, OUT),
    }
    modules = {name: BaseModule(name, *rest) for name, rest in kinds.items()}
    return BaseLayout("tiny", "Model", 1, "head", modules)


def weights(**ranks: int) -> AdapterWeights:
    sizes = {"first": (IN, IN), "second": (IN, IN), "head": (IN, OUT)}
    modules = {n: pair(r, 100 + r, size=sizes[n]) for n, r in ranks.items()}
    return AdapterWeights(f"sha256:{ranks}", modules, 0)


def wrapped() -> tuple[Model, LoraModel]:
    model = Model()
    lora = LoraModel(model, layout(), num_slots=SLOTS, max_rank=MAX_RANK, dtype=F32, device=CPU)
    return model, lora


def forward(model: Model, lora: LoraModel, uses: Uses, keep: slice) -> Tensor:
    """Three tokens, the last with adapters; the head sees those in `keep`."""
    rows: list[Uses] = [[], [], uses]
    with lora.planned(plan_of(rows), plan_of(rows[keep])):
        return model(inputs(3), keep)


def plan_of(rows: Sequence[Uses]) -> Plan:
    return build_plan([(1, uses) for uses in rows], dtype=F32, device=CPU)


def test_every_linear_is_wrapped_and_nothing_else_and_the_base_stays_what_it_was() -> None:
    plain, (model, lora) = Model(), wrapped()
    assert set(lora.layers) == {"first", "second", "head"}
    assert type(model.norm) is nn.LayerNorm
    lora.place(1, lora.prepare(weights(first=4, head=8)))
    got = forward(model, lora, [], slice(None))
    assert torch.equal(got, plain(inputs(3), slice(None)))
    forward(model, lora, [(1, 16.0)], slice(None))
    for name, layer in lora.layers.items():
        assert torch.equal(layer.base.weight, plain.get_submodule(name).weight)


def test_the_head_has_a_plan_of_its_own() -> None:
    model, lora = wrapped()
    lora.place(1, lora.prepare(weights(first=4, second=16, head=8)))
    whole = forward(model, lora, [(1, 1.0)], slice(None))
    last = forward(model, lora, [(1, 1.0)], slice(2, None))
    torch.testing.assert_close(last[:, 0], whole[:, 2])
    assert not torch.allclose(last[:, 0], Model()(inputs(3), slice(2, None))[:, 0])


@pytest.mark.parametrize("ranks", [{"first": 2}, {"second": 16}, {"head": 4, "first": 16}])
def test_a_slot_is_taken_over_whole(ranks: dict[str, int]) -> None:
    model, lora = wrapped()
    lora.place(1, lora.prepare(weights(first=16, second=4, head=8)))
    lora.place(1, lora.prepare(weights(**ranks)))
    fresh_model, fresh = wrapped()
    fresh.place(1, fresh.prepare(weights(**ranks)))
    assert torch.equal(
        forward(model, lora, [(1, 1.0)], slice(None)),
        forward(fresh_model, fresh, [(1, 1.0)], slice(None)),
    )


def test_a_slot_half_filled_is_taken_over_whole() -> None:
    model, lora = wrapped()
    lora.place(1, lora.prepare(weights(second=4)))
    torn = weights(first=8, second=8, head=8)
    bad = LoraPair(torch.zeros(8, IN + 1), torch.zeros(IN, 8), 1.0)
    with pytest.raises(RuntimeError):
        lora.place(1, lora.prepare(AdapterWeights("torn", {**torn.modules, "second": bad}, 0)))
    lora.place(1, lora.prepare(weights(second=2)))
    fresh_model, fresh = wrapped()
    fresh.place(1, fresh.prepare(weights(second=2)))
    assert torch.equal(
        forward(model, lora, [(1, 1.0)], slice(None)),
        forward(fresh_model, fresh, [(1, 1.0)], slice(None)),
    )


def test_only_modules_that_had_an_adapter_take_room() -> None:
    _, lora = wrapped()
    assert lora.slot_bytes == 0
    lora.place(1, lora.prepare(weights(first=2)))
    assert lora.slot_bytes == (SLOTS + 1) * MAX_RANK * (IN + IN) * 4
    lora.place(2, lora.prepare(weights(first=16)))
    assert lora.slot_bytes == (SLOTS + 1) * MAX_RANK * (IN + IN) * 4
