"""What runs a step on a CUDA device: Triton's kernels and recorded decode steps, if they do it
right.

Each kernel is tried once at start-up, on this device, against the plain one that it
replaces, and then all of them together by the self-check. What cannot be had, or differs,
is named in the log and in `/info`, and PyTorch's operations run instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import nn

from lorry.core import Row
from lorry.model.attention import AttentionStep, attend, attending
from lorry.model.graphs import CudaRecord, DecodeGraphs, Record
from lorry.model.inputs import AttentionPlan, Inputs
from lorry.model.kv_cache import KVCache, LayerShape
from lorry.model.logits import Logits
from lorry.model.packed import PackedModel
from lorry.model.paged import PagedSingles, tables_of
from lorry_adapters.lora.device_upload import DeviceUpload
from lorry_adapters.lora.kernels import reference, triton_kernels
from lorry_adapters.lora.kernels.table import TablePlan, table_of
from lorry_adapters.lora.layers import LoraModel
from lorry_adapters.lora.plan import build_plan

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Of a probe's largest number. A kernel that reads or adds something wrong is off by all of
it."""


class TritonModel:
    """The packed model's steps, with Triton's kernels; decode steps recorded. Takes inputs that
    lie on the host."""

    def __init__(
        self,
        packed: PackedModel,
        cache: KVCache,
        lora: LoraModel,
        *,
        device: torch.device,
        dtype: torch.dtype,
        record: Record | None = None,
    ) -> None:
        """`record`: None for CUDA graphs."""
        self._packed, self._lora, self._device = packed, lora, device
        # Fewer copies bring them to the device here than one for each tensor would.
        self.inputs_on = torch.device("cpu")
        lora.use(triton_kernels.add_planned)
        self.bring = DeviceUpload(device, dtype)
        """Called by the threads that fetch adapters."""
        self._graphs = DecodeGraphs(
            packed.run,
            CudaRecord() if record is None else record,
            block_size=cache.block_size,
            scratch_cell=cache.scratch_cell,
            dtype=dtype,
            device=device,
        )

    @property
    def name(self) -> str:
        """What `/info` calls it."""
        return "triton" if self._graphs.off is None else "triton, not recorded"

    def run(self, inputs: Inputs) -> Logits:
        """Logits of the wanted tokens. Steps of adapters that are more than pairs of matrices are
        not recorded."""
        if not any(slot in self._lora.beyond_pairs for slot in inputs.body.slots):
            logits = self._graphs.run(inputs, self._lora.slot_bytes)
            if logits is not None:
                return logits
        moved = to_device(inputs, self._device)
        plan = moved.attention
        singles = PagedSingles(tables_of(plan)) if plan.num_singles else None
        return self._packed.run(moved, singles)


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Inputs that were built on the host."""
    plan = inputs.attention
    body = TablePlan.on(device, inputs.body)
    return replace(
        inputs,
        ids_1T=inputs.ids_1T.to(device),
        positions_1T=inputs.positions_1T.to(device),
        attention=AttentionPlan(
            plan.rows,
            plan.num_singles,
            plan.block_size,
            device,
            plan.write_T.to(device),
            tuple(replace(c, context_L=c.context_L.to(device)) for c in plan.chunks),
        ),
        body=body,
        head=body if inputs.head.runs == inputs.body.runs else TablePlan.on(device, inputs.head),
        wanted_K=inputs.wanted_K.to(device),
    )


def probe(
    shapes: Iterable[LayerShape], *, dtype: torch.dtype, device: torch.device, block_size: int
) -> str | None:
    """Run every kernel against the one that it replaces; what is wrong, or None.

    `shapes`: of the model's attention layers; each kind is tried.
    """
    tries: list[tuple[str, Callable[[], float]]] = [
        ("the adapters' kernels", lambda: _probe_lora(dtype, device))
    ]
    for shape in dict.fromkeys(shapes):
        tries.append(
            (
                f"attention over {shape.heads} heads of {shape.key_size}",
                lambda shape=shape: _probe_attention(shape, dtype, device, block_size),  # type: ignore[misc]
            )
        )
    for what, run in tries:
        try:
            off = run()
        except Exception as error:  # noqa: BLE001 - a compiler's and a driver's errors have no common type
            return f"{what} cannot run: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if not off <= TOLERANCE[dtype]:
            return f"{what} differ from PyTorch's by {off:.2g}"
    return None


def _probe_lora(dtype: torch.dtype, device: torch.device) -> float:
    ranks, num_in, num_out = (0, 8, 16, 33), 1100, 300
    dice = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=dice).to(device, dtype)

    a_SRI, b_SRO = random(4, 40, num_in), random(4, 40, num_out)
    for slot, rank in enumerate(ranks):
        a_SRI[slot, rank:] = 0
        b_SRO[slot, rank:] = 0
    rows = [(1, [(1, 1.0)]), (20, [(2, 0.5), (3, -2.0)]), (3, []), (1, [(3, 1.0)])]
    plan = build_plan(rows, dtype=dtype, device=device)
    x_TI, y_TO = random(plan.num_tokens, num_in), random(plan.num_tokens, num_out)
    want_TO = y_TO.to(torch.float32, copy=True)
    reference.add_delta(want_TO, x_TI, a_SRI, b_SRO, plan.pairs)
    rank_S = torch.tensor(ranks, dtype=torch.int32, device=device)
    triton_kernels.add_delta(y_TO, x_TI, a_SRI, b_SRO, rank_S, table_of(plan), max_rank=max(ranks))
    return _off(y_TO, want_TO)


def _probe_attention(
    shape: LayerShape, dtype: torch.dtype, device: torch.device, block_size: int
) -> float:
    # One query head a key head, and two: groups of any size run the same code.
    module = nn.Identity()
    lengths = (1, block_size, 3 * block_size + 1, 40 * block_size)
    blocks = -(-sum(lengths) // block_size) + len(lengths)
    cache = KVCache(
        {module: shape}, num_blocks=blocks, block_size=block_size, dtype=dtype, device=device
    )
    dice = torch.Generator().manual_seed(0)
    kv = cache.layer(module)
    for cells in (kv.k_NHD, kv.v_NHD):
        cells.copy_(torch.randn(cells.shape, generator=dice))
    free = iter(range(blocks - 1, -1, -1))
    rows = tuple(
        Row(str(n), [0], n - 1, [next(free) for _ in range(-(-n // block_size))], (), None)
        for n in lengths
    )
    write = [row.blocks[-1] * block_size + row.start % block_size for row in rows]
    plan = AttentionPlan(
        rows, len(rows), block_size, device, torch.tensor(write, device=device), ()
    )
    q, k, v = (
        torch.randn(1, heads, len(rows), size, generator=dice).to(device, dtype)
        for heads, size in (
            (2 * shape.heads, shape.key_size),
            (shape.heads, shape.key_size),
            (shape.heads, shape.value_size),
        )
    )
    made = []
    for singles in (PagedSingles(tables_of(plan)), None):
        with attending(AttentionStep(plan, cache, singles)):
            made.append(attend(module, q, k, v, None)[0])
    return _off(made[0], made[1])


def _off(made: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((made.float() - wanted.float()).abs().max() / wanted.float().abs().max())
