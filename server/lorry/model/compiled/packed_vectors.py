"""What an adapter does with vectors, as the compiled step reads it: DoRA, (IA)3, biases.

At one scale s such an adapter adds to a linear's answer, beside the pair that it may have,

    more * base(x) + shift + base((1 + inward) * x) - base(x)

and a DoRA's pair counts 1 + more times, where more = m / sqrt(w + 2 s c + s^2 d) - 1
(`lorry_adapters.lora.effects.Dora`). Everything else grows with the scale or does not
depend on it: fixed + s * slope.

All linears' vectors lie in one piece, DoRA's first; making it for a scale is a handful of
operations over whole arrays, done when a step first asks for that scale. What a step reads
is the piece and a table of addresses into it, one entry for each linear.

Letters: M linears of the model, P outputs of all DoRAs, Q everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ctypes import sizeof
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from lorry.model.compiled import structs
from lorry.model.compiled.packed_matrices import FIELDS as MATRIX_FIELDS
from lorry.model.compiled.packed_matrices import MATRICES, PackedMatrices, room_of
from lorry_adapters.lora.matrix_deltas import (
    BoundChange,
    BoundKronecker,
    BoundPair,
    BoundShared,
    BoundTurn,
)
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.sparse import BoundSparse
from lorry_adapters.lora.vector_deltas import BoundDora, Delta, InwardGain, OutwardGain, Shift

KNOWN_SCALES = 4
"""Kept for each adapter beside those in use: most requests ask for the default."""

_FIELDS = ("more_O", "shift_O", "inward_I")
_MARKS = ("dora", "instead")
_NAMES = (*_FIELDS, *MATRIX_FIELDS, "scale", *_MARKS)
_VECTOR_DELTA = np.dtype(
    {
        "names": _NAMES,
        "formats": [
            *[np.uint64] * (len(_FIELDS) + len(MATRIX_FIELDS)),
            np.float32,
            *[np.int32] * len(_MARKS),
        ],
        "offsets": [getattr(structs.VectorDelta, name).offset for name in _NAMES],
        "itemsize": sizeof(structs.VectorDelta),
    }
)
_NONE = -1

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class BoundVectorDeltas:
    """At one scale; keeps the memory that its table points to."""

    values: Floats
    table_M: NDArray[np.void]

    @property
    def address(self) -> int:
        return self.table_M.ctypes.data

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.table_M.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class VectorDeltas:
    """Of one adapter, at any scale. `at` is the engine thread's."""

    magnitude_P: Floats
    w_P: Floats
    c_P: Floats
    """Twice c times the pair's own strength, and d times its square: the scale is what is left."""
    d_P: Floats
    fixed_Q: Floats
    slope_Q: Floats
    places_M3: NDArray[np.int64]
    """Where each linear's three vectors begin in a bound piece, or `_NONE`."""
    dora_M: NDArray[np.bool_]
    instead_M: NDArray[np.bool_]
    """Where the inward vectors or the turn is all that reads what goes in."""
    matrices: PackedMatrices | None = None
    _known: dict[float, BoundVectorDeltas] = field(default_factory=dict, repr=False)

    def at(self, scales: Iterable[float]) -> dict[float, BoundVectorDeltas]:
        """For all `scales` of a step: none of them is let go of for another."""
        found: dict[float, BoundVectorDeltas] = {}
        for scale in scales:
            # The last used stand last.
            known = self._known.pop(scale, None)
            self._known[scale] = found[scale] = self._bind(scale) if known is None else known
        for scale in list(self._known)[: max(0, len(self._known) - KNOWN_SCALES)]:
            if scale not in found:
                del self._known[scale]
        return found

    def _bind(self, scale: float) -> BoundVectorDeltas:
        s, split = np.float32(scale), len(self.w_P)
        values = np.empty(split + len(self.slope_Q), dtype=np.float32)
        more_P, rest_Q = values[:split], values[split:]
        np.multiply(self.d_P, s, out=more_P)
        more_P += self.c_P
        more_P *= s
        more_P += self.w_P
        np.maximum(more_P, 0, out=more_P)
        np.sqrt(more_P, out=more_P)
        # A norm of 0 makes what is no number, in its own rows, as it does elsewhere.
        with np.errstate(divide="ignore", invalid="ignore"):
            np.divide(self.magnitude_P, more_P, out=more_P)
        more_P -= 1
        np.multiply(self.slope_Q, s, out=rest_Q)
        rest_Q += self.fixed_Q
        table_M = np.zeros(len(self.places_M3), dtype=_VECTOR_DELTA)
        for column, name in enumerate(_FIELDS):
            places_M = self.places_M3[:, column]
            address_M = values.ctypes.data + places_M * values.itemsize
            table_M[name] = np.where(places_M == _NONE, 0, address_M)
        table_M["dora"], table_M["instead"] = self.dora_M, self.instead_M
        if self.matrices is not None:
            table_M["scale"] = s
            for column, name in enumerate(MATRIX_FIELDS):
                table_M[name] = self.matrices.addresses_M3[:, column]
        return BoundVectorDeltas(values, table_M)

    @property
    def nbytes(self) -> int:
        """With what is bound now."""
        return self._unbound_nbytes + sum(one.nbytes for one in list(self._known.values()))

    @property
    def most_nbytes(self) -> int:
        """With as many scales as are kept beside those in use."""
        table = len(self.places_M3) * _VECTOR_DELTA.itemsize
        each = self.w_P.nbytes + self.slope_Q.nbytes + table
        return self._unbound_nbytes + KNOWN_SCALES * each

    @property
    def _unbound_nbytes(self) -> int:
        parts = (self.magnitude_P, self.w_P, self.c_P, self.d_P, self.fixed_Q, self.slope_Q)
        matrices = 0 if self.matrices is None else self.matrices.nbytes
        return matrices + sum(part.nbytes for part in parts)


def fits(
    deltas: Mapping[str, Sequence[Delta]],
    pairs: Iterable[str],
    names: Sequence[str],
    head: str,
    *,
    rank: int = 0,
    room: int = 0,
) -> bool:
    """Whether everything that an adapter does beside its `pairs` is such vectors and matrices, on
    linears that the step has. `names`: theirs; on the `head` there may be pairs and vectors of its
    answer alone. `rank` of a pair, and `room` in floats for a Kronecker product, at most."""
    known, paired = frozenset(names), frozenset(pairs)
    for name, mine in deltas.items():
        kinds = [type(delta) for delta in mine]
        two = [kinds.count(BoundDora), kinds.count(BoundPair), kinds.count(BoundShared)]
        inward = kinds.count(InwardGain) + kinds.count(BoundTurn)
        matrices = sum(map(kinds.count, MATRICES)) + two[1] + two[2]
        if (
            name not in known
            or not {*kinds} <= {*_VECTORS, *MATRICES, BoundPair, BoundShared}
            or two[0] + kinds.count(OutwardGain) > 1
            or max(map(kinds.count, MATRICES)) > 1
            or inward > (name != head)
            or (matrices and name == head)
            or sum(two) + (name in paired) > 1
            or any(_too_large(delta, rank, room) for delta in mine)
        ):
            return False
    return True


_VECTORS = (BoundDora, OutwardGain, InwardGain, Shift)


def _too_large(delta: Delta, rank: int, room: int) -> bool:
    if isinstance(delta, BoundPair | BoundShared):
        return delta.a_RI.shape[0] > rank
    return isinstance(delta, BoundKronecker) and room_of(delta) > room


def pairs_of(deltas: Mapping[str, Sequence[Delta]]) -> dict[str, LoraPair]:
    """The pairs within deltas, by linear: DoRAs', and changes of a low rank."""
    return {
        name: LoraPair(
            delta.a_RI, delta.b_OR, delta.scaling if isinstance(delta, BoundDora) else 1.0
        )
        for name, mine in deltas.items()
        for delta in mine
        if isinstance(delta, BoundDora | BoundPair)
    }


_READ_X = (BoundPair, BoundShared, BoundKronecker, BoundChange, BoundSparse)


def vector_deltas_of(
    deltas: Mapping[str, Sequence[Delta]],
    pairs: Iterable[str],
    phases: Sequence[Sequence[str]],
    matrices: PackedMatrices | None = None,
) -> VectorDeltas | None:
    """Of deltas that fit; None where there are none. `pairs`: the linears on which the adapter
    has some. `phases`: the step's linears, in order; those of one read the same input. `matrices`:
    what else is in `deltas`."""
    every = [delta for mine in deltas.values() for delta in mine]
    if matrices is None and not any(isinstance(delta, _VECTORS) for delta in every):
        return None
    names = [name for phase in phases for name in phase]
    paired = {
        name for name, mine in deltas.items() if any(isinstance(delta, _READ_X) for delta in mine)
    }
    pairs = {*pairs, *paired}
    shared = {*pairs, *(name for phase in phases if len(phase) > 1 for name in phase)}
    doras: list[tuple[int, BoundDora]] = []
    others: list[tuple[int, int, Floats, Floats]] = []
    for module, name in enumerate(names):
        fixed: Floats | None = None
        slope: Floats | None = None
        for delta in deltas.get(name, ()):
            if isinstance(delta, BoundDora):
                doras.append((module, delta))
            elif isinstance(delta, OutwardGain):
                others.append((module, 0, _zeros(delta.more_O), _array(delta.more_O)))
            elif isinstance(delta, InwardGain):
                others.append((module, 2, _zeros(delta.more_I), _array(delta.more_I)))
            elif isinstance(delta, Shift):
                fixed = _zeros(delta.shift_O) if fixed is None else fixed
                slope = _zeros(delta.shift_O) if slope is None else slope
                if delta.scaled:
                    slope = slope + _array(delta.shift_O)
                else:
                    fixed = fixed + _array(delta.shift_O)
        if fixed is not None and slope is not None:
            others.append((module, 1, fixed, slope))
    places_M3 = np.full((len(names), len(_FIELDS)), _NONE, dtype=np.int64)
    dora_M = np.zeros(len(names), dtype=np.bool_)
    end = 0
    for module, dora in doras:
        places_M3[module, 0], dora_M[module] = end, True
        end += len(dora.w_O)
    for module, column, _, slope_X in others:
        places_M3[module, column] = end
        end += len(slope_X)
    single_M = np.array([name not in shared for name in names])
    turned_M = np.zeros(len(names), dtype=np.bool_)
    if matrices is not None:
        turned_M = matrices.addresses_M3[:, 0] != 0
    return VectorDeltas(
        magnitude_P=_joined(_array(dora.magnitude_O) for _, dora in doras),
        w_P=_joined(_array(dora.w_O) for _, dora in doras),
        c_P=_joined(_array(dora.c_O) * np.float32(2 * dora.scaling) for _, dora in doras),
        d_P=_joined(_array(dora.d_O) * np.float32(dora.scaling**2) for _, dora in doras),
        fixed_Q=_joined(fixed_X for _, _, fixed_X, _ in others),
        slope_Q=_joined(slope_X for _, _, _, slope_X in others),
        places_M3=places_M3,
        dora_M=dora_M,
        instead_M=single_M & ((places_M3[:, 2] != _NONE) | turned_M) & (places_M3[:, 0] == _NONE),
        matrices=matrices,
    )


def _array(values: torch.Tensor) -> Floats:
    found: Floats = values.float().numpy()
    return found


def _zeros(values: torch.Tensor) -> Floats:
    return np.zeros(len(values), dtype=np.float32)


def _joined(parts: Iterable[Floats]) -> Floats:
    return np.concatenate([np.zeros(0, dtype=np.float32), *parts])
