"""Which adapter lies in which slot, and on which of the paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorry.core import Row, SlotUse
from lorry.model.adapter_bytes import general_bytes, memory_of_base, placed_bytes
from lorry.model.compiled.adapter import PackedAdapter
from lorry.model.path_set import PathSet
from lorry_adapters.lora.adapter_memory import AdapterBytes
from lorry_adapters.lora.layers import BoundAdapter
from lorry_adapters.lora.parts import ClassifierHead
from lorry_adapters.lora.weights import AdapterWeights


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An adapter after all work that does not depend on its slot."""

    bound: BoundAdapter
    compiled: PackedAdapter | None
    """For the compiled step; None where that cannot apply it, or does not run."""
    size: AdapterBytes
    """What it takes on its way to a slot."""
    in_slot: AdapterBytes
    """What it takes there."""

    @property
    def weights(self) -> AdapterWeights:
        return self.bound.weights


ScoreOnDevice = tuple[Tensor, Tensor | None]
"""Weight `[L, H]` and bias `[L]` of a classifier, fp32."""


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What one slot holds."""

    digest: str
    compiled: bool
    """It lies in the slot of the compiled step."""
    general: bool
    """It lies in the slot of the general path. Both are true of an adapter of the compiled step
    that a row with another kind of adapter, or a pooled row, has used."""
    bound: BoundAdapter | None
    """Kept where it may have to be brought to the general path later."""
    score: ScoreOnDevice | None
    known_tokens: int
    """The first so many tokens of the vocabulary exist for it; 0: all of them."""
    size: AdapterBytes
    """What it takes now."""


class Placement:
    """The table of the slots. All but `prepare` belong to the engine thread."""

    def __init__(self, paths: PathSet) -> None:
        self._paths = paths
        self._held: dict[int, Held] = {}
        self._slot_of: dict[str, int] = {}
        self._base = memory_of_base(paths.lora.model)
        layout = paths.layout
        self._ends = [p for p in (layout.input_embedding, layout.output_embedding) if p is not None]
        self.grow: Callable[[str, AdapterBytes], None] = lambda digest, size: None
        """Counts what an adapter takes from now on. Raises OutOfMemory if there is no room."""

    @torch.inference_mode()
    def prepare(self, weights: AdapterWeights) -> Prepared:
        """All work on an adapter that needs no slot. Any thread; takes its time."""
        if self._paths.upload is not None:
            weights = self._paths.upload(weights)
        bound = self._paths.lora.prepare(weights)
        compiled = self._paths.compiled
        packed = None if compiled is None else compiled.prepare(bound)
        size, in_slot = placed_bytes(
            bound, packed, self._base, self._paths.dtype.itemsize, ends=self._ends
        )
        return Prepared(bound, packed, size, in_slot)

    # In inference mode, as a step is, which also copies adapters to slots: a tensor made in
    # inference mode cannot be changed in place outside of it.
    @torch.inference_mode()
    def place(self, slot: int, prepared: Prepared) -> AdapterBytes:
        """Copy an adapter's weights to a slot; whatever it held is gone. Between two steps only.
        Returns what it takes there.

        Raises:
            AdapterBroken: its prefix has other shapes than the cache.
        """
        paths, weights = self._paths, prepared.weights
        # An adapter that is placed halfway belongs to nobody.
        before = self._held.pop(slot, None)
        if before is not None and self._slot_of.get(before.digest) == slot:
            del self._slot_of[before.digest]
        paths.virtual_tokens.place(slot, weights.prompt)
        if prepared.compiled is None:
            if paths.compiled is not None:
                paths.compiled.clear(slot)
            paths.lora.place(slot, prepared.bound)
        else:
            assert paths.compiled is not None, "prepared for other paths"
            paths.lora.clear(slot)
            paths.compiled.place(slot, prepared.compiled)
        on_compiled = prepared.compiled is not None
        self._held[slot] = Held(
            digest=weights.digest,
            compiled=on_compiled,
            general=not on_compiled,
            bound=prepared.bound if on_compiled else None,
            score=None if weights.score is None else self._on_device(weights.score),
            known_tokens=weights.tokens or 0,
            size=prepared.in_slot,
        )
        self._slot_of[weights.digest] = slot
        return prepared.in_slot

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Let go of everything that a slot holds. Between two steps only."""
        held = self._held.pop(slot, None)
        if held is not None and self._slot_of.get(held.digest) == slot:
            del self._slot_of[held.digest]
        self._paths.virtual_tokens.place(slot, None)
        self._paths.lora.clear(slot)
        if self._paths.compiled is not None:
            self._paths.compiled.clear(slot)

    def bring_to_general(self, rows: Iterable[Row]) -> None:
        """Copy the adapters of `rows` to the general path's slots, where they lie in the compiled
        step's alone. Between two steps only. Raises OutOfMemory."""
        for slot in {use.slot for row in rows for use in row.adapters}:
            held = self._held[slot]
            if not held.general:
                assert held.bound is not None
                size = held.size.plus(general_bytes(held.bound, self._paths.dtype.itemsize))
                self.grow(held.digest, size)
                self._paths.lora.place(slot, held.bound)
                self._held[slot] = replace(held, general=True, size=size)

    def all_compiled(self, uses: Sequence[SlotUse]) -> bool:
        """Whether the compiled step can apply each of them."""
        return all(self._held[use.slot].compiled for use in uses)

    def slots_of(self, digests: Sequence[str]) -> list[int] | None:
        """Return the slots of the digests, or None if one is in no slot."""
        slots = [self._slot_of[digest] for digest in digests if digest in self._slot_of]
        return slots if len(slots) == len(digests) else None

    def digest_of(self, slot: int) -> str:
        return self._held[slot].digest

    def known_tokens(self, uses: Sequence[SlotUse]) -> int | None:
        """The first so many tokens of the vocabulary may be drawn; None: all of them."""
        known = [held.known_tokens for use in uses if (held := self._held[use.slot]).known_tokens]
        return min(known) if known else None

    def score_of(self, uses: Sequence[SlotUse]) -> ScoreOnDevice:
        """Of the first adapter that brings a classifier."""
        return next(score for use in uses if (score := self._held[use.slot].score) is not None)

    def _on_device(self, score: ClassifierHead) -> ScoreOnDevice:
        device, bias_L = self._paths.cache.device, score.bias_L
        return (
            score.weight_LH.to(device, torch.float32),
            None if bias_L is None else bias_L.to(device, torch.float32),
        )
