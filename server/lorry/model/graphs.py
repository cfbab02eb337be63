"""Decode steps recorded once and repeated: CUDA graphs, and the buffers that they read.

A decode step of a small batch is hundreds of short kernels; starting them one by one from
Python takes longer than they run. A recorded step is started as a whole. It always reads
the same memory, so all that differs between two steps lies in its *static buffers*, one piece
that is filled on the host and copied to the device.

A recording is made for a *shape*: rows, adapters of one row, and parts that the longest
context is cut in, each rounded up, at the first step that needs it. Rows that fill up a
batch write to a scratch cell that belongs to no sequence, see no context, and have no
adapter; a row's own numbers are those of the step run directly, because no kernel lets it
see its neighbours.

Everything but `record` is plain: given a function that runs a step, and one that records
it, no device is needed.

Letters: T rows of the shape, B rows of the step, W blocks that a table has room for,
P pairs, X tiles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorry.model.attention import SinglesKernel
from lorry.model.inputs import AttentionPlan, Inputs
from lorry.model.logits import Logits
from lorry.model.paged import SPAN, PagedSingles, Tables, parts_of
from lorry_adapters.lora.kernels.table import Layers, Table, TablePlan, lay_out

logger = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Batches that are recorded; a batch takes the next larger one."""

MAX_LAYERS = 4
"""Adapters of one row in a recorded step; a row with more runs directly."""

RunStep = Callable[[Inputs, SinglesKernel], Logits]
"""A forward pass over tensors on the device."""


@dataclass(frozen=True, slots=True)
class StepShape:
    rows: int
    layers: int
    """Most adapters of one row; 0 for a step of the base alone."""
    parts: int
    """As `paged.parts_of`, a power of two."""


def shape_of(num_rows: int, layers: int, longest: int) -> StepShape | None:
    """The recorded shape for a step of single rows; None where there is none.

    `longest`: tokens of the longest context, the new one included.
    """
    rows = next((size for size in ROWS if size >= num_rows), None)
    if rows is None or layers > MAX_LAYERS:
        return None
    return StepShape(rows, layers, 1 << (parts_of(longest) - 1).bit_length())


@dataclass(frozen=True, slots=True)
class _Section:
    shape: tuple[int, ...]
    dtype: torch.dtype


class StaticBuffers:
    """The buffers that a recorded step of `shape` reads."""

    def __init__(
        self,
        shape: StepShape,
        *,
        block_size: int,
        scratch_cell: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        rows, pairs = shape.rows, shape.layers * shape.rows
        self.shape = shape
        self._block_size = block_size
        self._scratch = scratch_cell
        sections = {
            "ids": _Section((rows,), torch.int64),
            "positions": _Section((rows,), torch.int64),
            "write": _Section((rows,), torch.int64),
            "table": _Section((rows, shape.parts * SPAN // block_size), torch.int32),
            "length": _Section((rows,), torch.int32),
            # Each layer has room for as many tiles as rows: all may have other adapters.
            "tiles": _Section((pairs, 3), torch.int32),
            "tokens": _Section((pairs,), torch.int32),
            "scales": _Section((pairs,), torch.float32),
        }
        size = sum(prod(s.shape) * s.dtype.itemsize for s in sections.values())
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=on_gpu)
        self._device = torch.zeros(size, dtype=torch.uint8, device=device)
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        host, there = _cut(self._host, sections), _cut(self._device, sections)
        self._numpy: dict[str, NDArray[np.generic]] = {n: t.numpy() for n, t in host.items()}
        body = TablePlan((), rows, dtype, device)
        body.table = Table(
            there["tiles"],
            there["tokens"],
            there["scales"],
            tuple((layer * rows, layer * rows + rows) for layer in range(shape.layers)),
        )
        body.recorded = True
        self.inputs = Inputs(
            order=(),
            ids_1T=there["ids"].unsqueeze(0),
            positions_1T=there["positions"].unsqueeze(0),
            attention=AttentionPlan((), rows, block_size, device, there["write"], ()),
            body=body,
            # Every row's logits are computed: the head sees the rows that the body sees.
            head=body,
            wanted_K=torch.arange(rows, device=device),
            wanted=(),
        )
        self.singles = PagedSingles(
            Tables(there["table"], there["length"], block_size, shape.parts)
        )

    def fill(self, inputs: Inputs, layers: Layers) -> None:
        """A step of single rows, its tensors on the host, and its pairs laid out."""
        if self._copied is not None:
            # The last copy may not have begun: its step drew no token, and nobody waited.
            self._copied.synchronize()
        rows = inputs.attention.rows
        count, size, there = len(rows), self._block_size, self._numpy
        there["ids"][:count] = inputs.ids_1T[0].numpy()
        there["ids"][count:] = 0
        there["positions"][:count] = inputs.positions_1T[0].numpy()
        there["positions"][count:] = 0
        there["write"][:count] = inputs.attention.write_T.numpy()
        there["write"][count:] = self._scratch
        there["length"][count:] = 0
        for place, row in enumerate(rows):
            blocks = -(-(row.start + 1) // size)
            there["length"][place] = row.start + 1
            there["table"][place, :blocks] = row.blocks[:blocks]
        there["tokens"][: len(layers.tokens)] = layers.tokens
        there["scales"][: len(layers.scales)] = layers.scales
        # An empty tile: its first pair is its stop.
        there["tiles"][:] = 0
        for layer, (first, stop) in enumerate(layers.spans):
            at = layer * self.shape.rows
            there["tiles"][at : at + stop - first] = layers.tiles[first:stop]
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def _cut(buffer: Tensor, sections: dict[str, _Section]) -> dict[str, Tensor]:
    # The widest numbers come first, so that each section is aligned.
    found, first = {}, 0
    for name, section in sections.items():
        size = prod(section.shape) * section.dtype.itemsize
        found[name] = buffer[first : first + size].view(section.dtype).view(section.shape)
        first += size
    return found


@dataclass(frozen=True, slots=True)
class Recording:
    buffers: StaticBuffers
    logits: Logits
    """Where each repetition leaves its answer."""
    repeat: Callable[[], None]


Record = Callable[[Callable[[], Logits]], tuple[Logits, Callable[[], None]]]
"""Records a step: its answer's place, and what repeats it."""


class DecodeGraphs:
    """Recorded steps by shape. Engine thread only."""

    def __init__(
        self,
        run: RunStep,
        record: Record,
        *,
        block_size: int,
        scratch_cell: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.off: str | None = None
        """Why no step is recorded any more."""
        self._run, self._record = run, record
        self._block_size, self._scratch = block_size, scratch_cell
        self._dtype, self._device = dtype, device
        self._recordings: dict[StepShape, Recording] = {}
        self._slot_bytes = 0

    def run(self, inputs: Inputs, slot_bytes: int) -> Logits | None:
        """Logits of the wanted tokens of a step of single rows, inputs on the host; None where
        no recording fits it and it is to be run directly.

        `slot_bytes`: grows when a module gets slots, which older recordings do not know.
        """
        if self.off is not None or inputs.virtual or inputs.attention.chunks:
            return None
        layers = lay_out(inputs.body.pairs)
        rows = inputs.attention.rows
        shape = shape_of(len(rows), len(layers.spans), max(row.start + 1 for row in rows))
        if shape is None:
            return None
        if slot_bytes != self._slot_bytes:
            self._recordings.clear()
            self._slot_bytes = slot_bytes
        recording = self._recordings.get(shape)
        if recording is None:
            recording = self._make(shape, inputs, layers)
            if recording is None:
                return None
        recording.buffers.fill(inputs, layers)
        recording.repeat()
        wanted = inputs.wanted_K.tolist()
        # A slice where it can be one: a list of places is copied to the device, and waited for.
        return recording.logits[slice(len(rows)) if wanted == list(range(len(rows))) else wanted]

    def _make(self, shape: StepShape, inputs: Inputs, layers: Layers) -> Recording | None:
        try:
            buffers = StaticBuffers(
                shape,
                block_size=self._block_size,
                scratch_cell=self._scratch,
                dtype=self._dtype,
                device=self._device,
            )
            # Recording runs the step for real, more than once. With these rows it writes
            # what the step is about to write anyway.
            buffers.fill(inputs, layers)
            logits, repeat = self._record(lambda: self._run(buffers.inputs, buffers.singles))
        except RuntimeError as error:
            # Of torch, its allocator and CUDA: modeling code that decides by a tensor's
            # content cannot be recorded.
            self.off = str(error).partition("\n")[0]
            self._recordings.clear()
            logger.warning("decode steps are not recorded any more: %s", self.off)
            return None
        made = self._recordings[shape] = Recording(buffers, logits, repeat)
        return made


class CudaRecord:
    """`Record` by CUDA graphs, which share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Logits]) -> tuple[Logits, Callable[[], None]]:
        # Before recording: kernels are compiled and workspaces reserved in a first run.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Threads that fetch adapters use the device meanwhile: what they do is not recorded
        # and must not end the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = run()
        return logits, graph.replay


def repeated(run: Callable[[], Logits]) -> tuple[Logits, Callable[[], None]]:
    """`Record` without a device: runs the step again over the same buffers, and leaves its
    answer where the first one was. What a recording computes, at the speed of a direct run."""
    place = run()

    def repeat() -> None:
        made = run()
        for mine, theirs in zip(_parts(place), _parts(made), strict=True):
            mine.copy_(theirs)

    return place, repeat


def _parts(logits: Logits) -> Sequence[Tensor]:
    return logits.values_KV, logits.norm_K, logits.best_K
