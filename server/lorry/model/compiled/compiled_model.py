"""A quantized model on the compiled step: packed, given adapters, run.

`lorry.model.compiled.survey_model` describes what it does, and the self-check at start-up compares
every answer with transformers' own layers before the first request.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorry.core import SlotUse
from lorry.errors import ModelError
from lorry.model.base_loader import LoadedModel
from lorry.model.compiled import structs
from lorry.model.compiled.adapter import PackedAdapter, pack_adapter
from lorry.model.compiled.call import Angles, Call
from lorry.model.compiled.compiled_linear import CompiledLinear
from lorry.model.compiled.compiled_stack import CompiledStack
from lorry.model.compiled.description import ModelDescription
from lorry.model.compiled.embedding_head import EmbeddingHead, EmbeddingHeadSlots, rows_of
from lorry.model.compiled.memory_bounds import MemoryBounds
from lorry.model.compiled.model_structs import ModelStructs, rope_of
from lorry.model.compiled.own_head import PackedHead, pack_own_head
from lorry.model.compiled.pack import BLOCK, PackedLinear, padded
from lorry.model.compiled.packed_matrices import ROOM, pack_matrices
from lorry.model.compiled.packed_slots import AdapterSlots
from lorry.model.compiled.packed_vectors import fits, pairs_of, vector_deltas_of
from lorry.model.compiled.shared_pairs import MAX_RANK, SharedPairs, SharedPart
from lorry.model.compiled.widened import widened_delta, widened_pair
from lorry.model.guard import Unsafe, require
from lorry.model.inputs import Inputs
from lorry.model.kv_cache import KVCache
from lorry.model.logits import Logits
from lorry.model.virtual_tokens import VirtualTokenSlots
from lorry_adapters.lora.matrix_deltas import BoundShared, OwnLinear
from lorry_adapters.lora.vector_deltas import Delta
from lorry_adapters.registry.record import MAX_SELECTION

if TYPE_CHECKING:
    from lorry_adapters.lora.layers import BoundAdapter

MOST_READ = 512 << 20
"""Bytes that `read_weights` reads: much more than any cache holds."""


class CompiledModel:
    """The packed model and its threads. One step at a time, from one thread: the engine's
    (`lorry.engine.loop`), which also places adapters, between two steps."""

    def __init__(
        self,
        library: ctypes.CDLL,
        loaded: LoadedModel,
        described: ModelDescription,
        cache: KVCache,
        prompts: VirtualTokenSlots,
        *,
        num_slots: int,
        max_tokens: int,
        max_context: int,
        max_rank: int,
        num_threads: int,
    ) -> None:
        """`max_tokens` of one step, `max_context` of one sequence.

        Raises:
            ModelError: no memory for the activations, or no threads.
        """
        self.name = "compiled"
        self.inputs_on = torch.device("cpu")
        self._library = library
        self._prompts = prompts
        self._linears: list[PackedLinear] = []
        self._stacks: list[PackedLinear] = []
        self._described = described
        count = int(loaded.config.get_text_config().num_hidden_layers)
        layers = self._layers = described.layers[:count]
        self._slots = AdapterSlots(
            [*(phase for layer in layers for phase in layer.phases), [described.head]], num_slots
        )
        self._angles = Angles(
            [rope_of(loaded.model, rope) for rope in described.ropes], described.longest
        )
        self._embedding_head = EmbeddingHeadSlots(
            loaded.model.get_input_embeddings().weight,
            described.embedding_factors[0],
            described.logit_factor,
            described.logit_cap,
        )
        # VeRA's ranks, and those of changes that turn out to be low, are not limited as pairs' are.
        most_rank = padded(max(max_rank, MAX_RANK))
        self._structs = ModelStructs(
            loaded.model, described, layers, cache, self._linear, self._slots_of, most_rank
        )
        self._model = self._structs.model
        self._vocab = described.vocab
        self._bounds = MemoryBounds(
            tokens=max_tokens,
            pairs=max_tokens * MAX_SELECTION,
            context=min(max_context, self._structs.context or max_context),
            blocks=cache.num_blocks,
            slots=num_slots,
            rank=most_rank,
            vocab=self._vocab,
            room=max(ROOM, self._vocab),
        )
        self._shared_pairs = SharedPairs(library)
        self._engine = library.lorry_engine(
            ctypes.byref(self._model), max_tokens, self._bounds.pairs, max_context, num_threads
        )
        if not self._engine:
            raise ModelError("no memory or no threads for the compiled step")

    @property
    def slot_bytes(self) -> int:
        """Of the adapters in the slots now."""
        return self._slots.nbytes

    def prepare(self, bound: BoundAdapter) -> PackedAdapter | None:
        """All work on an adapter that needs no slot; None where it does something that the
        step does not know. Any thread."""
        pairs, names = bound.weights.modules, self._slots.names
        deltas = dict(bound.deltas)
        at_head = self._described.head
        embedding, head = tuple(deltas.pop(self._described.embedding, ())), ()
        own_head: PackedHead | None = None
        fit = partial(
            fits, names=names, head=at_head, rank=self._bounds.rank, room=self._bounds.room
        )
        if at_head not in pairs and not fit({at_head: deltas.get(at_head, ())}, pairs):
            head = tuple(deltas.pop(at_head))
            if len(head) == 1 and isinstance(head[0], OwnLinear):
                own_head, head = self._packed_head(head[0]), ()
        if not fit(deltas, pairs) or not pairs.keys() <= {*names}:
            return None
        self._bounds.check_adapter({**pairs, **pairs_of(deltas)}, deltas, self._slots.sizes)
        if self._vocab % BLOCK:
            pairs = {n: widened_pair(pair) if n == at_head else pair for n, pair in pairs.items()}
            if at_head in deltas:
                deltas[at_head] = tuple(widened_delta(delta) for delta in deltas[at_head])
        matrices = pack_matrices(self._library, deltas, names)
        vectors = vector_deltas_of(deltas, pairs, self._slots.phases, matrices)
        pairs = {**pairs, **pairs_of(deltas)}
        packed = pack_adapter(self._library, pairs, self._slots.phases, vectors)
        return replace(
            packed,
            embedding_head=EmbeddingHead(embedding, head, own_head),
            shared=self._shared_parts(deltas),
        )

    def _shared_parts(self, deltas: Mapping[str, Sequence[Delta]]) -> dict[int, SharedPart]:
        found = {n: d for n, mine in deltas.items() for d in mine if isinstance(d, BoundShared)}
        inputs = {name: self._slots.sizes[name][0] for name in found}
        places = {name: place for place, name in enumerate(self._slots.names)}
        parts = self._shared_pairs.parts_of(found, inputs)
        return {places[name]: part for name, part in parts.items()}

    def _packed_head(self, own: OwnLinear) -> PackedHead:
        return pack_own_head(self._library, own, self._model.hidden, self._vocab)

    def place(self, slot: int, packed: PackedAdapter) -> None:
        """Fill `slot` with an adapter; whatever it held is gone. Between two steps only."""
        self._slots.place(slot, packed)
        self._embedding_head.place(slot, packed.embedding_head)

    def clear(self, slot: int) -> None:
        """Empty `slot`. Between two steps only."""
        self._slots.clear(slot)
        self._embedding_head.place(slot, EmbeddingHead())

    def runs(self, uses: Sequence[SlotUse]) -> bool:
        """Whether it can run a row of these adapters, all of them placed here."""
        return len(uses) < 2 or not any(self._embedding_head.has_head(use.slot) for use in uses)

    def run(self, inputs: Inputs) -> Logits:
        """Logits of the wanted tokens, fp32."""
        embeddings_TH = self._embedding_head.embeddings(inputs)
        own = {} if embeddings_TH is None else rows_of(embeddings_TH)
        own |= self._prompts.addresses(inputs.virtual, self._model.hidden)
        seen_KH, headed = None, frozenset[int]()
        if self._embedding_head.wants_hidden(inputs):
            seen_KH = torch.empty(len(inputs.wanted_K), self._model.hidden)
            headed = self._embedding_head.headed(inputs)
        vectors = self._slots.vectors(inputs.body)
        heads = self._embedding_head.own_heads(inputs)
        call = Call(
            inputs, self._angles, self._vocab, vectors, own, seen_KH, raw=headed, heads=heads
        )
        require(bool(self._engine), "the engine is closed")
        self._bounds.check_step(call, inputs)
        self._library.lorry_run(self._engine, ctypes.byref(call.struct))
        logits = call.logits()
        return (
            logits
            if seen_KH is None
            else self._embedding_head.answers(seen_KH, logits, inputs.head)
        )

    @property
    def token_bytes(self) -> int:
        """Of the weights that a step of one token reads: of every linear all of them, and of a
        mixture its router's and those of the experts that a token chooses."""
        mixtures = [layer.mixture for layer in self._layers if layer.mixture is not None]
        shares = (one.chosen / one.count for one in mixtures for _ in ("gate_up", "down"))
        active = sum(
            round(share * stack.nbytes) for share, stack in zip(shares, self._stacks, strict=True)
        )
        routers = sum(4 * self._described.hidden * one.count for one in mixtures)
        return sum(linear.nbytes for linear in self._linears) + active + routers

    def read_weights(self) -> int:
        """Read as many of their codes as `MOST_READ` allows, with the step's threads, and do
        nothing with them. Returns the bytes."""
        require(bool(self._engine), "the engine is closed")
        regions, left = [], MOST_READ
        for linear in (*self._linears, *self._stacks):
            size = min(linear.codes.nbytes, left) // 8
            left -= 8 * size
            regions.append((linear.codes.data_ptr(), size))
        starts = (ctypes.c_void_p * len(regions))(*(start for start, _ in regions))
        counts = (ctypes.c_int64 * len(regions))(*(count for _, count in regions))
        self._library.lorry_read(self._engine, starts, counts, len(regions))
        return MOST_READ - left

    def close(self) -> None:
        """End the threads. No step may follow."""
        if self._engine:
            self._library.lorry_engine_free(self._engine)
            self._engine = None

    def _linear(self, linear: nn.Module) -> structs.Linear:
        if not isinstance(linear, CompiledLinear | CompiledStack):
            raise Unsafe(f"a linear of {type(linear).__name__}")
        kept = self._stacks if isinstance(linear, CompiledStack) else self._linears
        kept.append(linear.packed)
        return linear.packed.struct

    def _slots_of(self, name: str, linear: Any) -> structs.LinearSlots:
        return self._slots.struct(name, linear.in_features, linear.out_features)
