"""The exact arithmetic of embeddings and heads that are an adapter's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lorry.model.compiled.embedding_head import EmbeddingHead, EmbeddingHeadSlots, rows_of
from lorry.model.inputs import Inputs
from lorry.model.logits import Logits
from lorry_adapters.lora.plan import Plan, build_plan

VOCAB, WIDTH, TOKENS = 50, 8, 7
ROWS = [(2, [(1, 1.0)]), (1, []), (3, [(2, 0.5), (1, 2.0)]), (1, [(3, 1.0)])]
"""(tokens, (slot, scale) of each adapter)."""


def plan() -> Plan:
    return build_plan(ROWS, dtype=torch.float32, device=torch.device("cpu"))


def inputs(ids: torch.Tensor, table: Plan) -> Inputs:
    nothing: dict[str, object] = dict.fromkeys(("order", "positions_1T", "attention", "wanted"))
    return Inputs(ids_1T=ids[None], body=table, head=table, wanted_K=ids, **nothing)  # type: ignore[arg-type]


def filled() -> tuple[EmbeddingHeadSlots, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    table_VH, other_VH, head_VH = (torch.randn(VOCAB, WIDTH, generator=generator) for _ in range(3))
    slots = EmbeddingHeadSlots(table_VH)
    slots.place(1, EmbeddingHead(embedding=(lambda ids, y, scale: other_VH[ids] - y,)))
    slots.place(2, EmbeddingHead(embedding=(lambda ids, y, scale: scale * torch.ones_like(y),)))
    slots.place(3, EmbeddingHead(head=(lambda x, y, scale: F.linear(x, head_VH) - y,)))
    return slots, table_VH, other_VH, head_VH


def test_embeddings_are_sums_of_deltas_of_the_base_s() -> None:
    slots, table_VH, other_VH, _ = filled()
    ids = torch.tensor([4, 9, 4, 17, 4, 30, 31])
    found = slots.embeddings(inputs(ids, plan()))
    expected = table_VH[ids].clone()
    expected[:2] = other_VH[ids[:2]]
    expected[3:6] = other_VH[ids[3:6]] + 0.5
    assert found is not None
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[[2, 6]], table_VH[ids[[2, 6]]]), "others keep their bits"
    addresses = rows_of(found)
    assert [addresses[t] - found.data_ptr() for t in range(TOKENS)] == list(range(0, 224, 32))


def test_a_step_without_them_asks_for_nothing() -> None:
    slots, *_ = filled()
    rows = build_plan([(7, [(4, 1.0)])], dtype=torch.float32, device=torch.device("cpu"))
    given = inputs(torch.zeros(TOKENS, dtype=torch.int64), rows)
    assert slots.embeddings(given) is None
    assert not slots.wants_hidden(given)
    for slot in (1, 2, 3):
        assert slots.has_head(slot) is (slot == 3)
        slots.place(slot, EmbeddingHead())
    given = inputs(torch.zeros(TOKENS, dtype=torch.int64), plan())
    assert slots.embeddings(given) is None
    assert not slots.wants_hidden(given)


def test_a_head_answers_for_its_rows_and_no_others() -> None:
    slots, _, _, head_VH = filled()
    generator = torch.Generator().manual_seed(4)
    seen_KH = torch.randn(TOKENS, WIDTH, generator=generator)
    before = Logits.of(torch.randn(TOKENS, VOCAB, generator=generator))
    given = Logits(before.values_KV.clone(), before.norm_K.clone(), before.best_K.clone())
    after = slots.answers(seen_KH, given, plan())
    expected = Logits.of(torch.cat([before.values_KV[:6], F.linear(seen_KH[6:], head_VH)]))
    torch.testing.assert_close(after.values_KV, expected.values_KV)
    torch.testing.assert_close(after.norm_K, expected.norm_K)
    assert torch.equal(after.best_K, expected.best_K)
    assert torch.equal(after.values_KV[:6], before.values_KV[:6])
