"""Recorded decode steps: which steps have one, what lies in its buffers, when it is made anew."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from lorry.core import Batch, Row, Sample, SamplingParams, SlotUse
from lorry.model.attention import SinglesKernel
from lorry.model.inputs import Inputs, build_inputs
from lorry.model.logits import Logits

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")

from lorry.model.graphs import (
    MAX_LAYERS,
    ROWS,
    DecodeGraphs,
    StaticBuffers,
    StepShape,
    repeated,
    shape_of,
)
from lorry.model.paged import SPAN, PagedSingles
from lorry_adapters.lora.kernels.table import TablePlan, lay_out

CPU = torch.device("cpu")
BLOCK_SIZE, SCRATCH = 16, 999
VOCABULARY = 7


def row(name: str, length: int, first_block: int, *uses: tuple[int, float], count: int = 1) -> Row:
    """The last `count` of `length` tokens."""
    blocks = list(range(first_block, first_block + -(-length // BLOCK_SIZE)))
    adapters = tuple(SlotUse(slot, scale) for slot, scale in uses)
    sample = Sample(SamplingParams(1), [0], (), None)
    return Row(name, [length % VOCABULARY] * count, length - count, blocks, adapters, sample)


def inputs_of(*rows: Row) -> Inputs:
    return build_inputs(
        Batch(rows),
        block_size=BLOCK_SIZE,
        dtype=torch.float32,
        device=CPU,
        digest_of=str,
    )


# ---- which steps


def test_a_batch_takes_the_next_larger_shape() -> None:
    assert [shape_of(n, 1, 5).rows for n in (1, 2, 3, 8, 9, 65, 128)] == [  # type: ignore[union-attr]
        1, 2, 4, 8, 16, 128, 128,
    ]  # fmt: skip
    assert shape_of(ROWS[-1] + 1, 0, 5) is None
    assert shape_of(1, MAX_LAYERS, 5) == StepShape(1, MAX_LAYERS, 1)
    assert shape_of(1, MAX_LAYERS + 1, 5) is None


def test_contexts_are_cut_in_a_power_of_two() -> None:
    lengths = (1, SPAN, SPAN + 1, 2 * SPAN + 1, 5 * SPAN)
    assert [shape_of(1, 0, length).parts for length in lengths] == [1, 1, 2, 4, 8]  # type: ignore[union-attr]


# ---- what lies in the buffers


def buffers_of(shape: StepShape) -> StaticBuffers:
    return StaticBuffers(
        shape, block_size=BLOCK_SIZE, scratch_cell=SCRATCH, dtype=torch.float32, device=CPU
    )


def fill(made: StaticBuffers, *rows: Row) -> None:
    inputs = inputs_of(*rows)
    made.fill(inputs, lay_out(inputs.body.pairs))


def test_rows_that_fill_up_touch_nothing_real() -> None:
    made = buffers_of(StepShape(4, 1, 1))
    # A fuller step first: what it left behind must not count.
    fill(made, *(row(str(n), 40 + n, 10 * n, (1 + n, 2.0)) for n in range(4)))
    fill(made, row("a", 20, 3, (2, 0.5)), row("b", 33, 7))
    inputs, tables = made.inputs, made.singles.tables
    assert inputs.ids_1T.tolist() == [[33 % VOCABULARY, 20 % VOCABULARY, 0, 0]]
    assert inputs.positions_1T.tolist() == [[32, 19, 0, 0]]
    # Position 32 is the third block's first cell, 19 the second's fourth.
    assert inputs.attention.write_T.tolist() == [9 * 16, 4 * 16 + 3, SCRATCH, SCRATCH]
    assert tables.length_B.tolist() == [33, 20, 0, 0]
    assert tables.table_BW[0, :3].tolist() == [7, 8, 9]
    assert tables.table_BW[1, :2].tolist() == [3, 4]
    assert isinstance(inputs.body, TablePlan) and inputs.body.table is not None
    table = inputs.body.table
    assert table.tiles_X3.tolist() == [[2, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert (int(table.token_P[0]), float(table.scale_P[0])) == (1, 0.5)
    assert table.spans == ((0, 4),)
    assert inputs.head is inputs.body


def test_each_layer_of_adapters_has_tiles_of_its_own() -> None:
    made = buffers_of(StepShape(2, 2, 1))
    fill(made, row("a", 5, 0, (1, 0.25), (3, 4.0)), row("b", 6, 1, (1, 1.0)))
    plan = made.inputs.body
    assert isinstance(plan, TablePlan) and plan.table is not None
    table = plan.table
    assert table.spans == ((0, 2), (2, 4))
    assert table.tiles_X3.tolist() == [[1, 0, 2], [0, 0, 0], [3, 2, 3], [0, 0, 0]]
    assert table.token_P[:3].tolist() == [0, 1, 0]
    assert table.scale_P[:3].tolist() == [0.25, 1.0, 4.0]


def test_the_memory_stays_the_same() -> None:
    made = buffers_of(StepShape(2, 1, 2))
    before = made.inputs.ids_1T.data_ptr(), made.singles.tables.table_BW.data_ptr()
    fill(made, row("a", SPAN + 5, 0, (1, 1.0)))
    assert before == (made.inputs.ids_1T.data_ptr(), made.singles.tables.table_BW.data_ptr())
    assert made.singles.tables.table_BW.shape == (2, 2 * SPAN // BLOCK_SIZE)


# ---- when one is made


class Model:
    """Logits that tell which token and position they were made from."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def __call__(self, inputs: Inputs, singles: SinglesKernel) -> Logits:
        assert isinstance(singles, PagedSingles)
        self.runs.append(inputs.ids_1T.shape[1])
        values_KV = torch.zeros(inputs.ids_1T.shape[1], VOCABULARY)
        values_KV[torch.arange(len(values_KV)), inputs.ids_1T[0]] = inputs.positions_1T[0].float()
        return Logits.of(values_KV)


def graphs_of(model: Model, record: Callable[..., object] = repeated) -> DecodeGraphs:
    return DecodeGraphs(
        model,
        record,  # type: ignore[arg-type]
        block_size=BLOCK_SIZE,
        scratch_cell=SCRATCH,
        dtype=torch.float32,
        device=CPU,
    )


def test_every_step_gets_its_own_answer() -> None:
    model = Model()
    graphs = graphs_of(model)
    for rows in ([row("a", 20, 0), row("b", 31, 5), row("c", 9, 9)], [row("a", 21, 0)] * 4):
        logits = graphs.run(inputs_of(*rows), 0)
        assert logits is not None and len(logits) == len(rows)
        assert logits.values_KV.amax(1).tolist() == [r.start for r in rows]
        assert logits.best_K.tolist() == [r.token_ids[0] for r in rows]
    # Both have four rows: recorded once, repeated twice.
    assert model.runs == [4, 4, 4]


def test_only_wanted_rows_come_back() -> None:
    silent = Row("b", [3], 30, [5, 6], (), None)
    logits = graphs_of(Model()).run(inputs_of(row("a", 20, 0), silent, row("c", 9, 9)), 0)
    assert logits is not None
    assert logits.values_KV.amax(1).tolist() == [19, 8]


def test_steps_with_prompts_or_too_many_rows_run_directly() -> None:
    model = Model()
    graphs = graphs_of(model)
    assert graphs.run(inputs_of(row("a", 20, 0), row("b", 31, 5, count=3)), 0) is None
    many = [row(str(n), 5, n) for n in range(ROWS[-1] + 1)]
    assert graphs.run(inputs_of(*many), 0) is None
    many_adapters = [(slot, 1.0) for slot in range(1, MAX_LAYERS + 2)]
    assert graphs.run(inputs_of(row("a", 20, 0, *many_adapters)), 0) is None
    assert model.runs == [] and graphs.off is None


def test_modules_that_got_slots_since_are_not_forgotten() -> None:
    """A recording knows nothing of slots that did not exist when it was made."""
    model = Model()
    graphs = graphs_of(model)
    for slot_bytes in (0, 0, 64, 64):
        graphs.run(inputs_of(row("a", 20, 0)), slot_bytes)
    recorded_and_repeated = 2
    assert len(model.runs) == 2 * recorded_and_repeated + 2


def test_what_cannot_be_recorded_runs_directly_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(run: Callable[[], Logits]) -> object:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = graphs_of(Model(), fails)
    with caplog.at_level(logging.WARNING):
        assert graphs.run(inputs_of(row("a", 20, 0)), 0) is None
        assert graphs.run(inputs_of(row("a", 21, 0)), 0) is None
    assert graphs.off == "operation not permitted when stream is capturing"
    assert len(caplog.records) == 1 and graphs.off in caplog.text
