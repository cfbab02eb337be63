"""The only forward pass: a batch in, a token for each row that wants one out.

A row runs on one of two paths, and its own adapters alone decide which, so that its
tokens do not depend on its neighbours:

compiled   (`lorry.model.native`) where the model allows it, for the base and for rows all of
           whose adapters are pairs of matrices and vectors (LoRA, DoRA, (IA)3, biases), virtual
           tokens, or changes of the embeddings and the head
packed     (`lorry.model.packed`) transformers' modeling code; serves every kind of
           adapter, and everything where there is no compiled step; on a GPU with Triton's
           kernels and recorded decode steps (`lorry.model.cuda`)
padded     (`lorry.model.padded`) in place of packed, for a model whose attention cannot be
           replaced

All read and write the same cache.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from lorry.core import Batch, Drawn, Pooling, Row, RowResult, Sample, TokenLogprob
from lorry.model.dense import dense_weight
from lorry.model.inputs import Inputs, build_inputs
from lorry.model.kv_cache import KVCache, LayerShape, bytes_per_token
from lorry.model.loader import LoadedModel
from lorry.model.logits import Logits
from lorry.model.native.adapter import PackedAdapter
from lorry.model.native.lean import LeanModel
from lorry.model.packed import PackedModel
from lorry.model.padded import PaddedModel
from lorry.model.prompts import Prompts
from lorry.model.sampler import among, logprobs_of, sample
from lorry.model.selection import Selection, TorchSelection
from lorry.model.survey import Survey, survey, survey_padded
from lorry_adapters.lora import room
from lorry_adapters.lora.layers import BoundAdapter, LoraModel

if TYPE_CHECKING:
    from lorry.model.cuda import CudaModel
    from lorry_adapters.lora.base import BaseLayout
    from lorry_adapters.lora.parts import Score
    from lorry_adapters.lora.weights import AdapterWeights


class Path(Protocol):
    """One way through the model."""

    def run(self, inputs: Inputs) -> Logits:
        """Logits of the wanted tokens."""
        ...


class PoolingPath(Path, Protocol):
    """One that also tells hidden states."""

    def hidden(self, inputs: Inputs) -> Tensor:
        """`[K, H]`, what the output head would see of the wanted tokens."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An adapter with everything done that does not depend on its slot."""

    bound: BoundAdapter
    compiled: PackedAdapter | None
    """For the compiled step, where it can apply it."""

    @property
    def weights(self) -> AdapterWeights:
        return self.bound.weights


class Runner:
    """Owns the model from here on: its attention, its linears and its cache."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        kv_blocks: int,
        block_size: int,
        max_slots: int,
        max_rank: int,
        kv_dtype: torch.dtype | None = None,
        found: Survey | None = None,
    ) -> None:
        """`kv_dtype`: `lorry.model.native.choice.kv_dtype`; None: the model's own."""
        self._device = loaded.device
        self._dtype = loaded.dtype
        self._kv_dtype = kv_dtype or loaded.dtype
        self._survey = survey(loaded) if found is None else found
        self.cache = self._cache_of(kv_blocks, block_size)
        self.lora = LoraModel(
            loaded.model,
            loaded.layout,
            num_slots=max_slots,
            max_rank=max_rank,
            dtype=loaded.dtype,
            device=loaded.device,
            weight=dense_weight,
            head=self._survey.reach.head,
        )
        self.selection: Selection = TorchSelection()
        self._pool = self._model_of(loaded)
        self._torch: Path = self._pool
        self._lean: LeanModel | None = None
        self._fused: CudaModel | None = None
        self._placed: dict[int, Prepared] = {}
        # Slots of adapters that the compiled step (a recorded one, on a GPU) cannot apply, and
        # those that are in the packed model's own slots too.
        self._special: set[int] = set()
        self._in_packed: set[int] = set()
        self._digests: dict[int, str] = {}
        self._scores: dict[int, tuple[Tensor, Tensor | None]] = {}
        # Of adapters that know fewer tokens than the base: how many.
        self._tokens: dict[int, int] = {}

    def _cache_of(self, num_blocks: int, block_size: int) -> KVCache:
        return KVCache(
            self._survey.shapes,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=self._kv_dtype,
            device=self._device,
        )

    def _model_of(self, loaded: LoadedModel) -> PoolingPath:
        model = PackedModel if self.unpackable is None else PaddedModel
        self.prompts = Prompts(self.cache, self._dtype, self._device)
        return model(loaded, self.cache, self.lora, self.prompts)

    @torch.inference_mode()
    def prepare(self, weights: AdapterWeights) -> Prepared:
        """All work on an adapter that needs no slot. Any thread; takes its time."""
        if self._fused is not None:
            weights = self._fused.bring(weights)
        bound = self.lora.prepare(weights)
        return Prepared(bound, None if self._lean is None else self._lean.prepare(bound))

    # As `run`, which makes room for adapters too: what one mode made the other may not change.
    @torch.inference_mode()
    def place(self, slot: int, prepared: Prepared) -> None:
        """Copy an adapter's weights into a slot. Between two runs only."""
        weights = prepared.weights
        self._digests[slot] = weights.digest
        self.prompts.place(slot, weights.prompt)
        self._place_score(slot, weights.score)
        self._tokens.pop(slot, None)
        if weights.tokens:
            self._tokens[slot] = weights.tokens
        if self._lean is None:
            (self._special.discard if prepared.bound.plain else self._special.add)(slot)
            self.lora.place(slot, prepared.bound)
            return
        self._in_packed.discard(slot)
        self._placed[slot] = prepared
        if prepared.compiled is not None:
            self._special.discard(slot)
            self.lora.clear(slot)
            self._lean.place(slot, prepared.compiled)
        else:
            self._lean.clear(slot)
            self._special.add(slot)
            self._in_packed.add(slot)
            self.lora.place(slot, prepared.bound)

    def _place_score(self, slot: int, score: Score | None) -> None:
        self._scores.pop(slot, None)
        if score is not None:
            bias = score.bias_L
            self._scores[slot] = (
                score.weight_LH.to(self._device, torch.float32),
                None if bias is None else bias.to(self._device, torch.float32),
            )

    @property
    def slot_bytes(self) -> int:
        """Reserved for the slots so far, all modules."""
        return self.lora.slot_bytes + (0 if self._lean is None else self._lean.slot_bytes)

    def go_lean(self, lean: LeanModel) -> None:
        """Run the rows that it can through the compiled path, which has its own slots."""
        assert self.lora.slot_bytes == 0, "adapters were placed before"
        assert self.unpackable is None, "it packs"
        self._lean = lean

    def go_fused(
        self, fused: Callable[[PackedModel, KVCache, LoraModel, Set[int]], CudaModel]
    ) -> None:
        """Run packed rows as `fused` does, which is made from the packed model, the cache, the
        slots, and what slots hold more than pairs of matrices, kept current."""
        assert self.lora.slot_bytes == 0, "adapters were placed before"
        assert self._lean is None and isinstance(self._torch, PackedModel)
        self._fused = self._torch = fused(self._torch, self.cache, self.lora, self._special)

    def leave_fused(self) -> None:
        """PyTorch's operations again."""
        assert self._fused is not None
        self._torch = self._fused.leave()
        self._fused = None

    def go_padded(self, loaded: LoadedModel, why: str) -> None:
        """Pad rows from now on, because packing them goes wrong; the cache is a new one, of
        no more bytes.

        Raises:
            UnsupportedModel: that is not possible either.
        """
        assert self._lean is None and self.unpackable is None
        before, size = self.cache.nbytes, self.cache.block_size
        self._survey = survey_padded(loaded, why)
        block = bytes_per_token(self._survey.shapes, self._kv_dtype) * size
        blocks = min(self.cache.num_blocks, before // block)
        # A device has no room for both.
        del self._torch, self._pool, self.cache
        self.cache = self._cache_of(blocks, size)
        self._torch = self._pool = self._model_of(loaded)

    @property
    def path(self) -> str:
        """What runs the steps: `native`, `triton` (and whether without recordings), `torch`."""
        if self._fused is not None:
            return self._fused.name
        return "torch" if self._lean is None else "native"

    @property
    def row_layout(self) -> str:
        """How a step's rows lie in the model's input: `packed` or `padded`."""
        return "packed" if self.unpackable is None else "padded"

    @property
    def layer_shapes(self) -> list[LayerShape]:
        """Of the attention layers, in order."""
        return list(self._survey.shapes.values())

    def layout(self, loaded: LoadedModel) -> BaseLayout:
        """Of the model that it runs, with what adapters cannot change on its path."""
        return self._survey.reach.of(loaded.layout)

    @property
    def unpackable(self) -> str | None:
        """Why rows are padded; None where they are not."""
        return self._survey.unpackable

    def settle(self) -> None:
        """After the self-check: let go of what only the other path needs."""
        if self._lean is not None:
            self._lean.take_over()
            # What is left to PyTorch is small. Its own threads would spin for a while
            # after each operation, on the cores that the next step needs.
            torch.set_num_threads(1)

    def close(self) -> None:
        if self._lean is not None:
            self._lean.close()

    @room.named("a step")
    @torch.inference_mode()
    def run(self, batch: Batch) -> list[RowResult]:
        """A result for each row, in the batch's order; one forward pass for each path.
        Raises OutOfMemory."""
        whole: Path = self._torch if self._lean is None else self._lean
        paths = [self._path_of(row) for row in batch.rows]
        if all(path is whole for path in paths):
            return self._run(batch, whole)
        results: dict[int, RowResult] = {}
        for path in (whole, self._torch, None):
            mine = [index for index, other in enumerate(paths) if other is path]
            if not mine or mine[0] in results:
                continue
            part = Batch(tuple(batch.rows[index] for index in mine))
            if self._lean is not None and path is not whole:
                self._bring_to_packed(part)
            made = self._run_pooled(part) if path is None else self._run(part, path)
            results.update(zip(mine, made, strict=True))
        return [results[index] for index in range(len(batch.rows))]

    def _path_of(self, row: Row) -> Path | None:
        """None: it is pooled."""
        if row.pooling is not None:
            return None
        lean = self._lean
        if lean is None or any(use.slot in self._special for use in row.adapters):
            return self._torch
        return lean if lean.runs(row.adapters) else self._torch

    def _bring_to_packed(self, batch: Batch) -> None:
        """What the compiled step holds is needed here as well: in a sum with another kind, or
        where a row is pooled."""
        for slot in {use.slot for row in batch.rows for use in row.adapters} - self._in_packed:
            self.lora.place(slot, self._placed[slot].bound)
            self._in_packed.add(slot)

    def _run_pooled(self, batch: Batch) -> list[RowResult]:
        inputs = build_inputs(
            batch,
            block_size=self.cache.block_size,
            dtype=self._dtype,
            device=self._device,
            digests=self._digests,
        )
        self.prompts.fill(inputs.attention)
        hidden_KH = self._pool.hidden(inputs).float()
        results: dict[int, RowResult] = {}
        for place, index in enumerate(inputs.order):
            row = batch.rows[index]
            first, count = inputs.wanted[place]
            # Of one token or of a mean's part.
            vector_H = hidden_KH[first : first + count].sum(0)
            if row.pooling is Pooling.CLASSIFY:
                weight_LH, bias_L = next(
                    self._scores[use.slot] for use in row.adapters if use.slot in self._scores
                )
                vector_H = nn.functional.linear(vector_H, weight_LH, bias_L)
            results[index] = RowResult(vector=tuple(vector_H.tolist()))
        return [results[index] for index in range(len(batch.rows))]

    def _run(self, batch: Batch, path: Path) -> list[RowResult]:
        inputs = build_inputs(
            batch,
            block_size=self.cache.block_size,
            dtype=self._dtype,
            # It brings them to the device itself, in fewer copies.
            device=self._device if self._fused is None else torch.device("cpu"),
            digests=self._digests,
        )
        self.prompts.fill(inputs.attention)
        logits = path.run(inputs)
        results: list[RowResult | None] = [None] * len(batch.rows)
        drawn = self._sample(batch, inputs, logits)
        for place, index in enumerate(inputs.order):
            row = batch.rows[index]
            first, _ = inputs.wanted[place]
            targets = row.prompt_targets or ()
            prompt = logprobs_of(logits[first : first + len(targets)], targets, row.prompt_top)
            if place in drawn:
                token, top = drawn[place]
                results[index] = RowResult((Drawn(token, top),), prompt)
            else:
                results[index] = RowResult((), prompt)
        return [result for result in results if result is not None]

    def _sample(
        self, batch: Batch, inputs: Inputs, logits: Logits
    ) -> dict[int, tuple[TokenLogprob, tuple[TokenLogprob, ...]]]:
        """By place in the packed row: the drawn token and the likeliest."""
        places: list[int] = []
        samples: list[Sample] = []
        lasts: list[int] = []
        for place, index in enumerate(inputs.order):
            row = batch.rows[index]
            wish = row.sample
            if wish is not None:
                known = [self._tokens[u.slot] for u in row.adapters if u.slot in self._tokens]
                wish = among(wish, min(known)) if known else wish
                first, count = inputs.wanted[place]
                places.append(place)
                samples.append(wish)
                lasts.append(first + count - 1)
        if not places:
            return {}
        chosen = logits if len(lasts) == len(logits) else logits[lasts]
        return dict(zip(places, sample(chosen, samples, self.selection), strict=True))
