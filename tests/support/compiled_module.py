"""One linear of the compiled step, with slots: what it answers to any tokens and adapters."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lorry.model.compiled import structs
from lorry.model.compiled.adapter import pack_adapter
from lorry.model.compiled.call import PairArrays
from lorry.model.compiled.pack import pack, padded
from lorry.model.compiled.packed_matrices import pack_matrices
from lorry.model.compiled.packed_slots import AdapterSlots
from lorry.model.compiled.packed_vectors import pairs_of, vector_deltas_of
from lorry.model.compiled.shared_pairs import SharedPairs
from lorry.model.int8 import Int8Linear
from lorry_adapters.lora.matrix_deltas import BoundShared
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.plan import Plan
from lorry_adapters.lora.vector_deltas import Delta

NUM_SLOTS = 6
MOST_TOKENS = 24
MOST_RANK = 40
NAME = "m"

Uses = Sequence[tuple[int, int, float]]
"""(slot, token, scale), slot by slot."""


def silent(inputs: int, outputs: int) -> Int8Linear:
    """Zeros: what comes out is the adapters' alone."""
    return Int8Linear(torch.zeros(outputs, inputs, dtype=torch.int8), torch.ones(outputs), None)


class CompiledModule:
    """`close` it."""

    def __init__(self, built: ctypes.CDLL, linear: Int8Linear, num_threads: int = 1) -> None:
        inputs, outputs = linear.in_features, linear.out_features
        widest = max(inputs, outputs)
        self._built = built
        self._packed = pack(linear)
        self._linear = self._packed.struct
        self._model = structs.Model(
            hidden=inputs, heads=1, kv_heads=1, head_size=16, inner=widest, vocab=16,
            max_rank=padded(MOST_RANK),
        )  # fmt: skip
        self._engine = built.lorry_engine(
            ctypes.byref(self._model), MOST_TOKENS, NUM_SLOTS * MOST_TOKENS, 16, num_threads
        )
        assert self._engine
        self._shared_pairs = SharedPairs(built)
        self._slots = AdapterSlots([[NAME]], NUM_SLOTS)
        self._struct = self._slots.struct(NAME, inputs, outputs)

    def place(self, slot: int, pair: LoraPair | None = None, deltas: Sequence[Delta] = ()) -> None:
        pairs = {} if pair is None else {NAME: pair}
        all_deltas = {NAME: deltas} if deltas else {}
        matrices = pack_matrices(self._built, all_deltas, [NAME])
        vectors = vector_deltas_of(all_deltas, pairs, [[NAME]], matrices)
        made = pack_adapter(self._built, {**pairs, **pairs_of(all_deltas)}, [[NAME]], vectors)
        for delta in deltas:
            if isinstance(delta, BoundShared):
                parts = self._shared_pairs.parts_of({NAME: delta}, {NAME: self._struct.in_})
                made = replace(made, shared={0: parts[NAME]})
        self._slots.place(slot, made)

    @property
    def slot_bytes(self) -> int:
        return self._slots.nbytes

    def __call__(self, x_TI: Tensor, uses: Uses) -> Tensor:
        x_TI = x_TI.contiguous()
        runs = tuple((slot, token, 1, scale) for slot, token, scale in uses)
        plan = Plan(runs, len(x_TI), torch.float32, torch.device("cpu"))
        vectors = self._slots.vectors(plan)
        pairs = PairArrays(plan, vectors)
        y_TO = torch.full((len(x_TI), self._packed.out_features), torch.nan)
        self._built.lorry_module(
            self._engine, ctypes.byref(self._linear), ctypes.byref(self._struct),
            ctypes.byref(pairs.struct), x_TI.data_ptr(), y_TO.data_ptr(), len(x_TI),
        )  # fmt: skip
        return y_TO

    def close(self) -> None:
        self._built.lorry_engine_free(self._engine)
