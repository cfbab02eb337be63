"""A Llama-shaped int8 model for the compiled step: recognised, packed, run.

Recognition looks at the modules and not at a name alone: `unsuited` says what does
not fit, and the self-check at start-up compares every answer with transformers' own
layers before the first request.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorry.core import SlotUse
from lorry.errors import ModelError
from lorry.model.base_loader import LoadedModel
from lorry.model.compiled import structs
from lorry.model.compiled.adapter import PackedAdapter, pack_adapter, padded
from lorry.model.compiled.call import Angles, Call
from lorry.model.compiled.embedding_head import EmbeddingHead, EmbeddingHeadSlots, rows_of
from lorry.model.compiled.memory_bounds import MemoryBounds
from lorry.model.compiled.pack import BLOCK, PackedLinear, pack
from lorry.model.compiled.packed_slots import AdapterSlots
from lorry.model.compiled.packed_vectors import doras_of, fits, vector_deltas_of
from lorry.model.guard import require
from lorry.model.inputs import Inputs
from lorry.model.int8 import Int8Linear
from lorry.model.kv_cache import KVCache
from lorry.model.logits import Logits
from lorry.model.virtual_tokens import VirtualTokenSlots
from lorry_adapters.lora.layers import LoraLinear
from lorry_adapters.registry.record import MAX_SELECTION

if TYPE_CHECKING:
    from lorry_adapters.lora.layers import BoundAdapter

ARCHITECTURES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
PHASES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linears of a layer in the order in which they run; those of one read the same input."""

HEAD = "lm_head"
EMBEDDING = "model.embed_tokens"

KV_DTYPE = torch.float16
"""Of the cache that a compiled step reads and writes."""

STATIC_ROPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds whose frequencies do not depend on the length of the sequence."""


def unsuited(loaded: LoadedModel) -> str | None:
    """Why the compiled step cannot run this model; None where it can."""
    config: Any = loaded.config
    if loaded.layout.architecture not in ARCHITECTURES:
        return f"{loaded.layout.architecture} is not of a shape that it knows"
    if loaded.quantization != "int8" or loaded.device.type != "cpu":
        return "it runs int8 weights on a CPU"
    if config.hidden_act != "silu":
        return f"the activation is {config.hidden_act}"
    if config.rope_parameters.get("rope_type", "default") not in STATIC_ROPES:
        return f"positions are of type {config.rope_parameters['rope_type']}"
    if config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        return "only a part of each head is rotated"
    attention = loaded.model.model.layers[0].self_attn
    sizes = (config.hidden_size, config.intermediate_size, attention.head_dim, config.vocab_size)
    if any(size % BLOCK for size in sizes):
        return f"a width of {sizes} is not a multiple of {BLOCK}"
    if not all(isinstance(_bare(m), Int8Linear) for m in _linears(loaded.model)):
        return "some of its linears are not int8"
    return None


class CompiledModel:
    """The packed model and its threads. One step at a time, from one thread: the engine's
    (`lorry.engine.loop`), which also places adapters, between two steps."""

    def __init__(
        self,
        library: ctypes.CDLL,
        loaded: LoadedModel,
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
        # Everything the compiled side points to.
        self._keep: list[object] = []
        self._packed: list[PackedLinear] = []
        self._sources: list[tuple[Int8Linear, PackedLinear, int]] = []
        rope = loaded.model.model.rotary_emb
        self._angles = Angles(lambda ids_1T: rope(torch.zeros(()), position_ids=ids_1T))
        layers = len(loaded.model.model.layers)
        self._slots = AdapterSlots(
            [
                *(
                    [f"model.layers.{index}.{path}" for path in phase]
                    for index in range(layers)
                    for phase in PHASES
                ),
                [HEAD],
            ],
            num_slots,
        )
        self._embedding_head = EmbeddingHeadSlots(loaded.model.model.embed_tokens.weight)
        self._vocab = int(loaded.config.vocab_size)
        model: Any = loaded.model
        self._structs = (structs.Layer * len(model.model.layers))()
        for index, layer in enumerate(model.model.layers):
            self._fill_layer(self._structs[index], layer, index, cache)
        config: Any = loaded.config
        attention = model.model.layers[0].self_attn
        self._model = structs.Model(
            num_layers=len(self._structs),
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_size=attention.head_dim,
            inner=config.intermediate_size,
            vocab=config.vocab_size,
            max_rank=padded(max_rank),
            epsilon=config.rms_norm_eps,
            embedding=self._pointer(model.model.embed_tokens.weight),
            norm=self._pointer(model.model.norm.weight),
            head=self._linear(model.lm_head),
            layers=self._structs,
        )
        self._model.head_slots = self._slots_of(HEAD, model.lm_head)
        self._bounds = MemoryBounds(
            tokens=max_tokens,
            pairs=max_tokens * MAX_SELECTION,
            context=max_context,
            blocks=cache.num_blocks,
            slots=num_slots,
            rank=padded(max_rank),
            vocab=self._vocab,
        )
        self._engine = library.lorry_engine(
            ctypes.byref(self._model), max_tokens, self._bounds.pairs, max_context, num_threads
        )
        if not self._engine:
            raise ModelError("no memory or no threads for the compiled step")

    @property
    def nbytes(self) -> int:
        return sum(packed.nbytes for packed in self._packed)

    @property
    def slot_bytes(self) -> int:
        """Of the adapters in the slots now."""
        return self._slots.nbytes

    def prepare(self, bound: BoundAdapter) -> PackedAdapter | None:
        """All work on an adapter that needs no slot; None where it does something that the
        step does not know. Any thread."""
        pairs, names = bound.weights.modules, self._slots.names
        deltas = dict(bound.deltas)
        embedding, head = tuple(deltas.pop(EMBEDDING, ())), ()
        if HEAD not in pairs and not fits({HEAD: deltas.get(HEAD, ())}, pairs, names, HEAD):
            head = tuple(deltas.pop(HEAD))
        if not fits(deltas, pairs, names, HEAD):
            return None
        vectors = vector_deltas_of(deltas, pairs, self._slots.phases)
        pairs = {**pairs, **doras_of(deltas)}
        self._bounds.check_adapter(pairs, deltas, self._slots.sizes)
        packed = pack_adapter(self._library, pairs, self._slots.phases, vectors)
        return replace(packed, embedding_head=EmbeddingHead(embedding, head))

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

    def take_over(self) -> None:
        """Drop the generic path's copy of the weights: its modules multiply with ours."""
        for linear, packed, part in self._sources:
            linear.hand_over(
                partial(packed.part, part), partial(self._multiply, packed.struct_of(part))
            )

    def _multiply(self, linear: structs.Linear, x: Tensor) -> Tensor:
        """One linear alone, for the rows that do not run here: `[..., I]` to `[..., O]`."""
        x_TI = x.reshape(-1, linear.in_).float().contiguous()
        require(bool(self._engine), "the engine is closed")
        require(
            len(x_TI) <= self._bounds.tokens, f"{len(x_TI)} rows, room for {self._bounds.tokens}"
        )
        y_TO = torch.empty(len(x_TI), linear.out)
        self._library.lorry_linear(
            self._engine, ctypes.byref(linear), x_TI.data_ptr(), y_TO.data_ptr(), len(x_TI)
        )
        return y_TO.view(*x.shape[:-1], linear.out)

    def run(self, inputs: Inputs) -> Logits:
        """Logits of the wanted tokens, fp32."""
        embeddings_TH = self._embedding_head.embeddings(inputs)
        own = {} if embeddings_TH is None else rows_of(embeddings_TH)
        own |= self._prompts.addresses(inputs.virtual, self._model.hidden)
        seen_KH = None
        if self._embedding_head.wants_hidden(inputs):
            seen_KH = torch.empty(len(inputs.wanted_K), self._model.hidden)
        vectors = self._slots.vectors(inputs.body)
        call = Call(inputs, self._angles, self._vocab, vectors, own, seen_KH)
        require(bool(self._engine), "the engine is closed")
        self._bounds.check_step(call, inputs)
        self._library.lorry_run(self._engine, ctypes.byref(call.struct))
        logits = call.logits()
        return (
            logits
            if seen_KH is None
            else self._embedding_head.answers(seen_KH, logits, inputs.head)
        )

    def close(self) -> None:
        """End the threads. No step may follow."""
        if self._engine:
            self._library.lorry_engine_free(self._engine)
            self._engine = None

    def _fill_layer(self, target: structs.Layer, layer: Any, index: int, cache: KVCache) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        prefix = f"model.layers.{index}"
        target.qkv = self._linear(attention.q_proj, attention.k_proj, attention.v_proj)
        target.o = self._linear(attention.o_proj)
        target.gate_up = self._linear(mlp.gate_proj, mlp.up_proj)
        target.down = self._linear(mlp.down_proj)
        qkv, o, gate_up, down = (
            [self._slots_of(f"{prefix}.{path}", layer.get_submodule(path)) for path in phase]
            for phase in PHASES
        )
        target.qkv_slots[:], target.o_slots = qkv, o[0]
        target.gate_up_slots[:], target.down_slots = gate_up, down[0]
        target.attention_norm = self._pointer(layer.input_layernorm.weight)
        target.mlp_norm = self._pointer(layer.post_attention_layernorm.weight)
        if hasattr(attention, "q_norm"):
            target.q_norm = self._pointer(attention.q_norm.weight)
            target.k_norm = self._pointer(attention.k_norm.weight)
        kv = cache.layer(attention)
        target.k_NHD = self._pointer(kv.k_NHD, KV_DTYPE)
        target.v_NHD = self._pointer(kv.v_NHD, KV_DTYPE)
        sight = cache.shape(attention).sight
        require(sight.chunk is None, "no architecture of this path has chunks")
        target.attention = structs.Attention(scale=attention.scaling, window=sight.window or 0)
        target.rotary = 1

    def _linear(self, *layers: nn.Module) -> structs.Linear:
        bare = [base for base in map(_bare, layers) if isinstance(base, Int8Linear)]
        require(len(bare) == len(layers), "a linear that is not int8")
        packed = pack(*bare)
        self._packed.append(packed)
        self._sources += [(linear, packed, i) for i, linear in enumerate(bare)]
        return packed.struct

    def _slots_of(self, name: str, linear: Any) -> structs.LinearSlots:
        return self._slots.struct(name, linear.in_features, linear.out_features)

    def _pointer(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
        require(
            tensor.dtype is dtype and tensor.is_contiguous(),
            f"a tensor of {tensor.dtype} with strides {tensor.stride()} where {dtype} is read",
        )
        self._keep.append(tensor)
        return tensor.data_ptr()


def _bare(layer: nn.Module) -> nn.Module:
    return layer.base if isinstance(layer, LoraLinear) else layer


def _linears(model: Any) -> Sequence[nn.Module]:
    found: list[nn.Module] = [model.lm_head]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        found += [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        found += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return found
