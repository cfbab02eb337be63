"""How much of the adapters' memory one adapter needs, before it is read. No torch.

`least` is certain, and decides what is refused for good. `most` is what is kept free while an
adapter is brought to a slot; afterwards what it really takes counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lorry.option import format_size
from lorry_adapters.errors import OutOfMemory, Problem, Remedy
from lorry_adapters.lora.adapter_memory import UNLIMITED, AdapterBytes
from lorry_adapters.lora.adapter_size import AdapterSize, PairSize

GROUP: Final = 8
"""The compiled step pads ranks to a multiple of it."""
_LINES: Final = 128
"""Bytes by which the beginnings of a pair's two pieces may be moved."""
_PER_NUMBER: Final = 8
"""Most bytes for each number of a tensor that is no pair: a copy in fp32, and a packed one."""
_PER_WIDTH: Final = 32
"""The same for each input and output of a linear with vectors: several, in fp32, some for each
scale in use."""


@dataclass(frozen=True, slots=True)
class AdapterNeeds:
    """Of one server. Crosses the engine's boundary."""

    limit: int = UNLIMITED
    """Bytes for all adapters."""
    packed: bool = True
    """True if a compiled step reads them, in 8 bits."""
    itemsize: int = 4
    """Bytes of a number on the device."""

    def most(self, size: AdapterSize) -> AdapterBytes:
        """Return what it takes at most, or the limit if that is less."""
        pairs = sum(map(self._packed if self.packed else self._held, size.pairs))
        more = size.others * _PER_NUMBER + (size.widths * _PER_WIDTH if size.others else 0)
        if size.full:
            more += size.full * (self.itemsize + 1)
        return AdapterBytes(
            weights=size.weights - size.virtual_tokens,
            pairs=pairs,
            deltas=more,
            heads=2 * size.tables if self.packed else size.tables * self.itemsize,
            virtual_tokens=3 * size.virtual_tokens,
        ).capped(self.limit)

    def least(self, size: AdapterSize) -> int:
        """Return the bytes that it takes in any case."""
        if size.full:
            # What is measured needs not all of its tensors afterwards.
            return 0
        # Nor does what is computed from others once.
        kept = max(0, size.weights - 4 * size.others - size.virtual_tokens)
        return kept + (sum(map(self._packed, size.pairs)) if self.packed else 0)

    def why_never(self, size: AdapterSize) -> Problem | None:
        """Return why an adapter can never be in a slot here, or None."""
        needed = self.least(size)
        if needed <= self.limit:
            return None
        return Problem(
            f"it needs at least {format_size(needed)} of memory for its tensors as they are stored "
            f"and as a step reads them, and all adapters together have {format_size(self.limit)}",
            Remedy.RAISE_ADAPTER_MEMORY,
            needed=needed,
            limit=self.limit,
        )

    def refusal(self, what: str, size: AdapterBytes, used: int = 0) -> OutOfMemory:
        """Return the error for an adapter that does not fit. `what`: "adapter X". `used`: bytes
        that others use meanwhile."""
        others = f", of which others use {format_size(used)} now" if used else ""
        parts = {
            "its tensors": size.weights,
            "pairs": size.pairs,
            "deltas": size.deltas,
            "heads": size.heads,
            "virtual tokens": size.virtual_tokens,
        }
        named = ", ".join(f"{format_size(count)} {part}" for part, count in parts.items() if count)
        return OutOfMemory(
            Problem(
                f"{what} needs {format_size(size.total)} of memory ({named}), and all adapters "
                f"together have {format_size(self.limit)}{others}",
                Remedy.RAISE_ADAPTER_MEMORY,
                needed=size.total,
                limit=self.limit,
            )
        )

    def _packed(self, pair: PairSize) -> int:
        rank = -(-pair.rank // GROUP) * GROUP
        return rank * (pair.inputs + pair.outputs + 4) + 2 * pair.outputs + _LINES

    def _held(self, pair: PairSize) -> int:
        return pair.numbers * self.itemsize
