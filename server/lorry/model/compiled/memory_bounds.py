"""The memory of the compiled step, in numbers, and the checks that keep a step and an adapter
inside of it.

The C code trusts every index and every length. Each is compared here before an address is handed
over, in every mode of the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorry.model.compiled.call import Call
from lorry.model.compiled.packed_matrices import room_of
from lorry.model.guard import Unsafe, require
from lorry.model.inputs import Inputs
from lorry_adapters.lora.matrix_deltas import BoundChange, BoundKronecker, BoundShared, BoundTurn
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.sparse import BoundSparse
from lorry_adapters.lora.vector_deltas import BoundDora, Delta, InwardGain, OutwardGain, Shift

Sizes = Mapping[str, tuple[int, int]]
"""Inputs and outputs of each linear."""


@dataclass(frozen=True, slots=True)
class MemoryBounds:
    tokens: int
    """Of one step."""
    pairs: int
    """A token and one of its adapters; of one step."""
    context: int
    """Tokens that a row sees."""
    blocks: int
    """Of the cache."""
    slots: int
    """The base's, which is 0, not counted."""
    rank: int
    """Padded, as `adapter.padded` does it."""
    vocab: int
    room: int
    """Floats for a Kronecker product."""

    def check_step(self, call: Call, inputs: Inputs) -> None:
        """Raises Unsafe where the step would leave its memory."""
        tokens, wanted = len(call.ids), len(call.wanted)
        body, head = inputs.body, inputs.head
        for what, count, limit in (
            ("tokens", tokens, self.tokens),
            ("adapters", body.num_pairs, self.pairs),
            ("adapters of the head", head.num_pairs, self.pairs),
            ("tokens that a row sees", call.longest, self.context),
            ("tokens of the head's adapters", head.num_tokens, wanted),
        ):
            if count > limit:
                raise Unsafe(f"{count} {what}, room for {limit}")
        if body.num_tokens != tokens:
            raise Unsafe(f"adapters of {body.num_tokens} tokens, not {tokens}")
        for what, values, first, end in (
            ("token", call.ids, 0, self.vocab),
            ("block", call.blocks, 0, self.blocks),
            ("wanted token", call.wanted, 0, tokens),
        ):
            if not values:
                raise Unsafe(f"no {what} at all")
            _require_within(what, values, first, end)
        for slots in call.slots:
            if slots:
                _require_within("slot", slots, 1, self.slots + 1)
        for plan in (body,) if head is body else (body, head):
            for slot, start, count, _ in plan.runs:
                if start < 0 or count < 1 or start + count > plan.num_tokens:
                    raise Unsafe(
                        f"slot {slot} at {count} tokens from {start}, of {plan.num_tokens}"
                    )

    def check_adapter(
        self,
        pairs: Mapping[str, LoraPair],
        deltas: Mapping[str, Sequence[Delta]],
        sizes: Sizes,
    ) -> None:
        """Raises Unsafe where an adapter has other sizes than the base's linears. `pairs`: a
        DoRA's too."""
        for name, pair in pairs.items():
            inputs, outputs = sizes[name]
            rank = pair.a_RI.shape[0]
            require(rank <= self.rank, f"{name}: rank {rank}, room for {self.rank}")
            found = (*pair.a_RI.shape, *pair.b_OR.shape)
            wanted = (rank, inputs, outputs, rank)
            require(found == wanted, f"{name}: a pair of {found}, not of {wanted}")
        for name, mine in deltas.items():
            inputs, outputs = sizes[name]
            for delta in mine:
                shape = _shape(delta, outputs)
                require(
                    shape is None or shape == (outputs, inputs),
                    f"{name}: a change of {shape}, not of {(outputs, inputs)}",
                )
                if isinstance(delta, BoundShared):
                    self._check_shared(name, delta, inputs, outputs)
                if isinstance(delta, BoundKronecker):
                    needed = room_of(delta)
                    require(
                        needed <= self.room,
                        f"{name}: a product of {needed} numbers, room for {self.room}",
                    )
                wanted_size = inputs if isinstance(delta, InwardGain) else outputs
                for size in _lengths(delta):
                    require(size == wanted_size, f"{name}: {size} numbers, not {wanted_size}")

    def _check_shared(self, name: str, delta: BoundShared, inputs: int, outputs: int) -> None:
        (rank, wide), (tall, other) = delta.a_RI.shape, delta.b_OR.shape
        require(rank <= self.rank, f"{name}: rank {rank}, room for {self.rank}")
        require(
            rank == other == delta.d_R.numel(),
            f"{name}: ranks {rank}, {other} and {delta.d_R.numel()}",
        )
        require(
            wide >= inputs and tall >= outputs,
            f"{name}: {wide} to {tall} features, less than {inputs} to {outputs}",
        )


def _shape(delta: Delta, outputs: int) -> tuple[int, int] | None:
    """Outputs and inputs of a matrix; of a rotation, which has inputs alone, `outputs`."""
    match delta:
        case BoundTurn():
            blocks, size, wide = delta.blocks_NSS.shape
            return outputs, blocks * size if size == wide else 0
        case BoundKronecker():
            (a, c), (b, d) = delta.w1_ac.shape, delta.w2_bd.shape
            return a * b, c * d
        case BoundChange():
            rows, columns = delta.change_OI.shape
            return rows, columns
        case BoundSparse():
            rows, columns = delta.sparse_OI.shape
            return rows, columns
        case _:
            return None


def _lengths(delta: Delta) -> list[int]:
    match delta:
        case BoundDora():
            vectors = [delta.magnitude_O, delta.w_O, delta.c_O, delta.d_O]
        case OutwardGain():
            vectors = [delta.more_O]
        case InwardGain():
            vectors = [delta.more_I]
        case Shift():
            vectors = [delta.shift_O]
        case BoundShared():
            vectors = [delta.b_O]
        case _:
            vectors = []
    return [vector.numel() for vector in vectors]


def _require_within(what: str, values: Sequence[int], first: int, end: int) -> None:
    lowest, highest = min(values), max(values)
    if lowest < first or highest >= end:
        raise Unsafe(f"{what}s {lowest} to {highest} of {first} to {end - 1}")
