"""The slots of the compiled step: for every linear and slot, where the adapter's part lies.

Placing an adapter writes addresses. What they point to was packed elsewhere
(`lorry.model.compiled.adapter`), and is kept here as long as a step may read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import sizeof

import numpy as np

from lorry.model.compiled import structs
from lorry.model.compiled.adapter import PackedAdapter
from lorry.model.compiled.packed_vectors import BoundVectorDeltas
from lorry.model.compiled.widened import widened
from lorry.model.guard import require
from lorry_adapters.lora.plan import Plan

_ADDRESSES = ("a", "b", "inner_R", "outer_O")
_LORA = np.dtype(
    {
        "names": [*_ADDRESSES, "rank"],
        "formats": [*[np.uint64] * len(_ADDRESSES), np.int32],
        "offsets": [getattr(structs.Lora, name).offset for name in (*_ADDRESSES, "rank")],
        "itemsize": sizeof(structs.Lora),
    }
)


class AdapterSlots:
    """Slots 1 to `num_slots` of all linears; slot 0 is the base and always empty."""

    def __init__(self, phases: Sequence[Sequence[str]], num_slots: int) -> None:
        """`phases`: the linears' names, in the order in which a step reads their adapters."""
        self.phases = phases
        names = [name for phase in phases for name in phase]
        self._index = {name: index for index, name in enumerate(names)}
        self._table_MS = np.zeros((len(names), num_slots + 1), dtype=_LORA)
        self._most_S = np.zeros(num_slots + 1, dtype=np.int32)
        self.sizes: dict[str, tuple[int, int]] = {}
        """Inputs and outputs of each linear, by its name."""
        self._held: dict[int, PackedAdapter] = {}
        self._vectored: set[int] = set()

    @property
    def names(self) -> Sequence[str]:
        """Of the linears, in a step's order."""
        return list(self._index)

    def struct(self, name: str, in_features: int, out_features: int) -> structs.LinearSlots:
        """What the step reads of one linear."""
        module = self._index[name]
        self.sizes[name] = (in_features, out_features)
        return structs.LinearSlots(
            self._table_MS[module].ctypes.data,
            self._most_S.ctypes.data,
            in_features,
            widened(out_features),
            module,
        )

    def place(self, slot: int, packed: PackedAdapter) -> None:
        """Not while a step runs: what lay in `slot` before is freed."""
        slots = self._table_MS.shape[1]
        require(1 <= slot < slots, f"slot {slot} of {slots}")
        require(len(packed.places_M3) == len(self._table_MS), "packed for another model")
        base = packed.memory.ctypes.data
        column = self._table_MS[:, slot]
        column["a"] = packed.places_M3[:, 0] + base
        column["b"] = packed.places_M3[:, 1] + base
        column["inner_R"] = column["outer_O"] = 0
        column["rank"] = packed.places_M3[:, 2]
        for module, part in packed.shared.items():
            pair = part.pair
            column[module] = (
                *(pair.a.ctypes.data, pair.b.ctypes.data),
                *(part.inner_R.data_ptr(), part.outer_O.data_ptr(), pair.rank),
            )
        self._most_S[slot] = packed.rank
        self._held[slot] = packed
        (self._vectored.discard if packed.vectors is None else self._vectored.add)(slot)

    def clear(self, slot: int) -> None:
        """Not while a step runs."""
        self._table_MS["rank"][:, slot] = 0
        self._most_S[slot] = 0
        self._held.pop(slot, None)
        self._vectored.discard(slot)

    def vectors(self, plan: Plan) -> Mapping[tuple[int, float], BoundVectorDeltas]:
        """By (slot, scale), what a step reads of the adapters that have some. They hold as
        long as somebody keeps them."""
        if not self._vectored:
            return {}
        scales: dict[int, dict[float, None]] = {}
        for slot, _, _, scale in plan.runs:
            if slot in self._vectored:
                scales.setdefault(slot, {})[scale] = None
        found: dict[tuple[int, float], BoundVectorDeltas] = {}
        for slot, mine in scales.items():
            vectors = self._held[slot].vectors
            if vectors is not None:
                found.update(((slot, scale), bound) for scale, bound in vectors.at(mine).items())
        return found

    @property
    def nbytes(self) -> int:
        """Of the adapters that lie in slots."""
        held = list(self._held.values())
        shared = {part.pair for packed in held for part in packed.shared.values()}
        return sum(packed.nbytes for packed in held) + sum(pair.nbytes for pair in shared)
