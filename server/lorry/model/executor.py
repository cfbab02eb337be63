"""Runs a batch: sends each row down its path, one forward pass for each path, and draws tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lorry.core import Batch, Drawn, Pooling, RowResult, Sample, SlotUse
from lorry.model.drawing import Drawing
from lorry.model.inputs import Inputs, build_inputs
from lorry.model.logits import Logits
from lorry.model.path_set import Path, PathSet
from lorry.model.placement import Placement
from lorry.model.pooling import pool
from lorry.model.sampler import among, logprobs_of, sample
from lorry.model.verifying import verified
from lorry_adapters.lora import room


class Executor:
    """Engine thread only."""

    def __init__(self, paths: PathSet, selection: Drawing) -> None:
        self.paths = paths
        self.placement = Placement(paths)
        self._selection = selection

    @room.named("a step")
    @torch.inference_mode()
    def run(self, batch: Batch) -> list[RowResult]:
        """A result for each row, in the batch's order. Raises OutOfMemory."""
        main, general = self.paths.main, self.paths.general
        if batch.copies:
            self.paths.cache.copy(batch.copies)
        chosen = [self._path(row.adapters, row.pooling) for row in batch.rows]
        if all(path is main for path in chosen):
            return self._run(batch, main)
        results: dict[int, RowResult] = {}
        for path in dict.fromkeys((main, general, None)):
            mine = [index for index, other in enumerate(chosen) if other is path]
            if not mine:
                continue
            part = Batch(tuple(batch.rows[index] for index in mine))
            if path is not self.paths.compiled:
                self.placement.bring_to_general(part.rows)
            made = pool(part, self.paths, self.placement) if path is None else self._run(part, path)
            results.update(zip(mine, made, strict=True))
        return [results[index] for index in range(len(batch.rows))]

    def path_of(self, digests: Sequence[str], pooling: Pooling | None) -> str | None:
        """The name of the path of such rows and of the cache's type: those with equal names round
        alike. None if an adapter is in no slot."""
        slots = self.placement.slots_of(digests)
        if slots is None:
            return None
        path = self._path([SlotUse(slot, 1.0) for slot in slots], pooling)
        if path is None:
            name = "general" if self.paths.general is self.paths.pooled else "pooled"
        else:
            name = "compiled" if path is self.paths.compiled else "general"
        return f"{name}, {self.paths.cache.dtype}"

    def takes_drafts(self, digests: Sequence[str]) -> bool:
        """Whether rows with these digests, which are in slots, can have drafts: not if they are
        padded, as each number of drafts would be a forward pass of its own."""
        if self.paths.unpackable is None:
            return True
        slots = self.placement.slots_of(digests)
        if slots is None:
            return False
        return self._path([SlotUse(slot, 1.0) for slot in slots], None) is self.paths.compiled

    def _path(self, uses: Sequence[SlotUse], pooling: Pooling | None) -> Path | None:
        """None: it is pooled."""
        if pooling is not None:
            return None
        compiled = self.paths.compiled
        if compiled is None:
            return self.paths.general
        if not uses or (self.placement.all_compiled(uses) and compiled.runs(uses)):
            return compiled
        return self.paths.general

    def _run(self, batch: Batch, path: Path) -> list[RowResult]:
        inputs = build_inputs(
            batch,
            block_size=self.paths.cache.block_size,
            dtype=self.paths.dtype,
            device=path.inputs_on,
            digest_of=self.placement.digest_of,
        )
        self.paths.virtual_tokens.fill(inputs.attention)
        logits = path.run(inputs)
        results: list[RowResult | None] = [None] * len(batch.rows)
        drawn = self._draw(batch, inputs, logits)
        for place, index in enumerate(inputs.order):
            row = batch.rows[index]
            first, _ = inputs.wanted[place]
            targets = row.prompt_targets or ()
            prompt = logprobs_of(logits[first : first + len(targets)], targets, row.prompt_top)
            mine = drawn.get(place, ())
            if isinstance(mine, Exception):
                results[index] = RowResult((), prompt, error=mine)
            else:
                results[index] = RowResult(mine, prompt)
        return [result for result in results if result is not None]

    def _draw(
        self, batch: Batch, inputs: Inputs, logits: Logits
    ) -> dict[int, tuple[Drawn, ...] | Exception]:
        """By place in the packed row: the drawn tokens, or what their mask raised."""
        drawn: dict[int, tuple[Drawn, ...] | Exception] = {}
        places: list[int] = []
        samples: list[Sample] = []
        lasts: list[int] = []
        for place, index in enumerate(inputs.order):
            row = batch.rows[index]
            wish = row.sample
            if wish is not None:
                known = self.placement.known_tokens(row.adapters) if row.adapters else None
                first, count = inputs.wanted[place]
                if row.drafts:
                    mine = logits[first + count - 1 - row.drafts : first + count]
                    drafts = row.token_ids[-row.drafts :]
                    drawn[place] = verified(mine, wish, drafts, known, self._selection)
                    continue
                if wish.mask is not None:
                    # It was made while the model ran.
                    try:
                        wish = replace(wish, allowed=wish.mask(0))
                    except Exception as error:  # noqa: BLE001 - a grammar is its user's
                        drawn[place] = error
                        continue
                places.append(place)
                samples.append(wish if known is None else among(wish, known))
                lasts.append(first + count - 1)
        if places:
            chosen = logits if len(lasts) == len(logits) else logits[lasts]
            made = sample(chosen, samples, self._selection)
            drawn |= {at: (Drawn(*one),) for at, one in zip(places, made, strict=True)}
        return drawn
