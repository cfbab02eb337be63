"""What an adapter's memory depends on, from its header and config alone. No torch.

`lorry_adapters.lora.weights.size_of` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PairSize:
    """The pair of one linear."""

    rank: int
    inputs: int
    outputs: int

    @property
    def numbers(self) -> int:
        return self.rank * (self.inputs + self.outputs)


@dataclass(frozen=True, slots=True)
class AdapterSize:
    weights: int
    """Bytes of its tensors in host memory."""
    pairs: tuple[PairSize, ...] = ()
    others: int = 0
    """Numbers in tensors that belong to no pair, without tables and virtual tokens."""
    tables: int = 0
    """Numbers in whole tables and heads of its own."""
    virtual_tokens: int = 0
    """Bytes of them; a part of `weights`."""
    widths: int = 0
    """Inputs and outputs of all changed linears together."""
    full: int = 0
    """Numbers of the changed weights, if the method may need all of them."""
