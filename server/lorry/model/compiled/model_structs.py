"""A described model in the structures of `step.h`, and the memory that they point to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorry.model.compiled import structs
from lorry.model.compiled.call import Rope
from lorry.model.compiled.description import (
    HeadNorm,
    LayerDescription,
    MixtureDescription,
    ModelDescription,
    NormDescription,
    RopeDescription,
    Scoring,
)
from lorry.model.compiled.formulas import ACTIVATIONS, angles_of, bias_of, called, weight_of
from lorry.model.compiled.written_rope import WrittenRope
from lorry.model.dense import dense_weight
from lorry.model.guard import require
from lorry.model.kv_cache import KVCache, Layer

KV_DTYPE = torch.float16
"""Of the cache that a compiled step reads and writes, if it is not in bytes."""

TABLES = (torch.float32, torch.float16, torch.bfloat16)
"""What a table of embeddings may consist of, in the order of `step.h`."""

SCORINGS: tuple[Scoring, ...] = ("softmax", "sigmoid", "sparse")
"""In the order of `step.h`."""

MOST_GROUPS = 64
"""Of experts; `step.h` has it as well."""

Pack = Callable[[nn.Module], structs.Linear]

SlotsOf = Callable[[str, nn.Module], structs.LinearSlots]


def rope_of(model: nn.Module, rope: RopeDescription) -> Rope:
    module = model.get_submodule(rope.module) if rope.module else WrittenRope()

    def of(ids_1T: Tensor) -> tuple[Tensor, Tensor]:
        cos_1TR, sin_1TR = called(module, rope, ids_1T)
        return angles_of(cos_1TR, rope.angles), angles_of(sin_1TR, rope.angles)

    return of


def bare(module: nn.Module) -> nn.Module:
    """The base's own, where adapters are wrapped around it."""
    base = getattr(module, "base", None)
    return base if isinstance(base, nn.Module) else module


class ModelStructs:
    """Keeps everything that `model` points to."""

    def __init__(
        self,
        model: nn.Module,
        described: ModelDescription,
        layers: Sequence[LayerDescription],
        cache: KVCache,
        pack: Pack,
        slots_of: SlotsOf,
        max_rank: int,
    ) -> None:
        self._keep: list[object] = []
        self._modules: Mapping[str, nn.Module] = dict(model.named_modules())
        self._described, self._cache, self._pack, self._slots_of = described, cache, pack, slots_of
        self._layers = (structs.Layer * len(layers))()
        for target, layer in zip(self._layers, layers, strict=True):
            self._fill(target, layer)
        within, outside = described.embedding_factors
        cap = described.logit_cap or 0.0
        table = self._table(described.embedding, described.vocab)
        require(table.dtype in TABLES, f"a table of {table.dtype}")
        self.model = structs.Model(
            num_layers=len(layers),
            hidden=described.hidden,
            heads=described.heads,
            kv_heads=described.kv_heads,
            head_size=described.head_size,
            inner=described.inner,
            vocab=described.vocab,
            max_rank=max_rank,
            rotated=described.rotated,
            pairs=described.rotation == "pairs",
            activation=list(ACTIVATIONS).index(described.activation),
            gated=described.gated,
            embedding=self._pointer(table, table.dtype),
            embedding_kind=TABLES.index(table.dtype),
            embedding_factor=within * outside,
            own_factor=outside,
            embedding_norm=self._norm(described.embedding_norm, described.hidden),
            plain_embedding=described.positions is None
            and described.embedding_norm is None
            and within * outside == outside == 1.0,
            logit_factor=described.logit_factor,
            logit_cap=cap,
            plain_logits=described.logit_factor == 1.0 and not cap,
            norm=self._norm(described.norm, described.hidden),
            head=self._linear(described.head),
            head_slots=self._slot(described.head),
            layers=self._layers,
        )
        self.context: int | None = None
        """Tokens of a sequence: so many have a learned position; None: any number."""
        if described.positions is not None:
            path, first = described.positions
            table_PH = self._table(path)[first:]
            self.model.positions = self._pointer(table_PH)
            self.context = len(table_PH)

    def _require_sizes(self, layer: LayerDescription) -> None:
        """The C code finds heads and gates by these alone."""
        described = self._described
        hidden, inner = described.hidden, layer.inner_size
        queries = described.heads * described.head_size
        rows = queries + 2 * described.kv_heads * described.head_size
        sizes: list[tuple[Sequence[str], tuple[int, int]]] = [
            (layer.qkv, (hidden, rows)),
            ((layer.o,), (queries, hidden)),
        ]
        if layer.down is not None:
            sizes.append((layer.inner, (hidden, (1 + described.gated) * inner)))
            sizes.append(((layer.down,), (inner, hidden)))
            require(inner <= described.inner, f"{inner} of {described.inner} numbers")
        for paths, size in sizes:
            linears: list[Any] = [bare(self._modules[path]) for path in paths]
            inputs, outputs = {m.in_features for m in linears}, sum(m.out_features for m in linears)
            require(
                inputs == {size[0]} and outputs == size[1],
                f"{', '.join(paths)}: {inputs} to {outputs} features, not {size}",
            )
        for at in layer.heads_at or ():
            require(0 <= at <= rows - described.head_size, f"a head at {at} of {rows}")
        require(layer.rope is None or layer.rope < len(described.ropes), "angles of no rope")

    def _fill(self, target: structs.Layer, layer: LayerDescription) -> None:
        self._require_sizes(layer)
        described = self._described
        target.qkv[: len(layer.qkv)] = [self._linear(path) for path in layer.qkv]
        target.gate_up[: len(layer.inner)] = [self._linear(path) for path in layer.inner]
        target.o, target.o_slots = self._linear(layer.o), self._slot(layer.o)
        if layer.down is not None:
            target.down, target.down_slots = self._linear(layer.down), self._slot(layer.down)
        if layer.mixture is not None:
            target.mixture = self._mixture(layer.mixture)
        target.qkv_slots[: len(layer.qkv)] = [self._slot(path) for path in layer.qkv]
        target.gate_up_slots[: len(layer.inner)] = [self._slot(path) for path in layer.inner]
        target.inner = layer.inner_size
        target.qkv_parts, target.gate_up_parts = len(layer.qkv), len(layer.inner)
        for name in ("attention_norm", "after_attention", "mlp_norm", "after_mlp"):
            setattr(target, name, self._norm(getattr(layer, name), described.hidden))
        target.q_norm = self._head_norm(layer.q_norm, described.heads)
        target.k_norm = self._head_norm(layer.k_norm, described.kv_heads)
        if layer.heads_at is not None:
            heads_at = torch.tensor(layer.heads_at, dtype=torch.int32)
            target.heads_at = self._pointer(heads_at, torch.int32)
        attention: Layer = (
            self._modules[layer.attention] if isinstance(layer.attention, str) else layer.attention
        )
        kv, shape = self._cache.layer(attention), self._cache.shape(attention)
        stored = (shape.heads, shape.key_size, shape.value_size)
        size = described.head_size
        require(stored == (described.kv_heads, size, size), f"a cache of {stored}")
        kept = torch.int8 if self._cache.dtype is torch.int8 else KV_DTYPE
        target.k_NHD, target.v_NHD = self._pointer(kv.k_NHD, kept), self._pointer(kv.v_NHD, kept)
        if kv.k_scale_NH is not None and kv.v_scale_NH is not None:
            target.k_scale_NH = self._pointer(kv.k_scale_NH, torch.float16)
            target.v_scale_NH = self._pointer(kv.v_scale_NH, torch.float16)
        require(shape.sight.chunk is None, "no model of this path has chunks")
        target.attention = structs.Attention(
            scale=layer.attention_scale, cap=layer.softcap or 0.0, window=shape.sight.window or 0
        )
        for name, heads in (("slope_Q", layer.slopes), ("sink_Q", layer.sinks)):
            if heads is not None:
                require(len(heads) == described.heads, f"{len(heads)} numbers of heads")
                setattr(target.attention, name, self._pointer(torch.tensor(heads)))
        target.rope = -1 if layer.rope is None else layer.rope
        target.parallel = layer.parallel
        target.attention_residual, target.mlp_residual = layer.residuals
        whole = described.rotated == size and described.rotation == "halves"
        target.norm_last = any(norm and norm.last for norm in (layer.q_norm, layer.k_norm))
        target.plain_heads = (
            layer.heads_at is None
            and not target.norm_last
            and (layer.rope is None or (layer.rope == 0 and whole))
            and all(
                not norm.weight or not (norm.centred or norm.each or norm.size != size)
                for norm in (target.q_norm, target.k_norm)
            )
        )
        target.plain_sums = (
            layer.residuals == (1.0, 1.0)
            and not layer.parallel
            and layer.after_attention is None
            and layer.after_mlp is None
        )

    def _mixture(self, mixture: MixtureDescription) -> structs.Mixture:
        hidden, count, inner = self._described.hidden, mixture.count, mixture.inner
        router = mixture.router
        experts, scorer = (bare(self._modules[path]) for path in (mixture.experts, router.module))
        stacks = dict(experts.named_children())
        wanted = {"gate_up_proj": (count, 2 * inner, hidden), "down_proj": (count, hidden, inner)}
        packed: list[structs.Linear] = []
        for name, size in wanted.items():
            stack: Any = stacks.get(name)
            shape = getattr(stack, "shape", None)
            require(shape == size, f"{mixture.experts}.{name}: {shape}, not {size}")
            # A stack knows no bias: transformers adds it afterwards.
            packed.append(structs.Linear.from_buffer_copy(self._pack(stack)))
            bias = getattr(experts, f"{name}_bias", None)
            if bias is not None:
                packed[-1].bias_O = self._numbers(bias, count * size[1], f"{name}_bias")
        require(1 <= mixture.chosen <= count, f"{mixture.chosen} of {count} experts")
        groups, kept = router.groups or (1, 1)
        require(
            1 <= kept <= groups <= MOST_GROUPS
            and count % groups == 0
            and mixture.chosen <= kept * (count // groups),
            f"{mixture.chosen} experts of {kept} in {groups} groups",
        )
        weight = scorer.weight
        assert isinstance(weight, Tensor)
        require(weight.shape == (count, hidden), f"{router.module}: {tuple(weight.shape)}")
        gate = None
        if mixture.shared_gate is not None:
            gate_1H = dense_weight(bare(self._modules[mixture.shared_gate]))
            require(gate_1H.shape == (1, hidden), f"{mixture.shared_gate}: {tuple(gate_1H.shape)}")
            gate = self._pointer(gate_1H)
        alpha, limit = mixture.clamp or (0.0, 0.0)
        return structs.Mixture(
            router=self._pointer(weight.detach()),
            bias=self._vector(router.bias, count),
            correction=self._vector(router.correction, count),
            gate_up=packed[0],
            down=packed[1],
            shared_gate=gate,
            factor=router.factor,
            experts=count,
            chosen=mixture.chosen,
            inner=inner,
            normed=router.normed,
            scoring=SCORINGS.index(router.scoring),
            corrects_scores=router.corrects_scores,
            groups=groups if router.groups else 0,
            kept=kept,
            tolerance=router.tolerance,
            interleaved=mixture.interleaved,
            alpha=alpha,
            limit=limit,
        )

    def _vector(self, path: str | None, size: int) -> int | None:
        """Of a tensor of the model; modules on the way may be wrapped."""
        if path is None:
            return None
        found: Any = self._modules[""]
        for part in path.split("."):
            found = getattr(bare(found), part)
        return self._numbers(found, size, path)

    def _numbers(self, tensor: Tensor, size: int, name: str) -> int:
        require(tensor.numel() == size, f"{name}: {tensor.numel()} numbers, not {size}")
        return self._pointer(tensor.detach().float().contiguous())

    def _norm(self, norm: NormDescription | None, width: int) -> structs.Norm:
        if norm is None:
            return structs.Norm()
        modules = [bare(self._modules[path]) for path in norm.modules]
        weights = [weight_of(module, norm.from_one, width).flatten() for module in modules]
        biases = [bias.flatten() for bias in map(bias_of, modules) if bias is not None]
        require(len(biases) in (0, len(modules)), "some heads' norms have a bias, some none")
        bias = self._pointer(_joined(biases)) if biases else None
        weight = self._pointer(_joined(weights))
        require(
            all(vector.numel() % width == 0 for vector in (*weights, *biases)),
            f"{norm.modules[0]}: a norm of other than {width} numbers",
        )
        return structs.Norm(weight, bias, norm.epsilon, norm.centred, width)

    def _head_norm(self, head_norm: HeadNorm | None, heads: int) -> structs.Norm:
        if head_norm is None:
            return structs.Norm()
        size = self._described.head_size
        if head_norm.whole:
            return self._norm(head_norm.norm, heads * size)
        found = self._norm(head_norm.norm, size)
        weights = sum(
            weight_of(bare(self._modules[path]), False, size).numel()
            for path in head_norm.norm.modules
        )
        require(weights in (size, heads * size), f"a norm of {weights} numbers for {heads} heads")
        found.each = weights > size
        return found

    def _table(self, path: str, rows: int | None = None) -> Tensor:
        table = bare(self._modules[path]).weight
        assert isinstance(table, Tensor)
        size = (len(table) if rows is None else rows, self._described.hidden)
        require(table.shape == size, f"{path}: a table of {tuple(table.shape)}, not {size}")
        return table

    def _slot(self, path: str) -> structs.LinearSlots:
        return self._slots_of(path, bare(self._modules[path]))

    def _linear(self, path: str) -> structs.Linear:
        return self._pack(bare(self._modules[path]))

    def _pointer(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
        require(
            tensor.dtype is dtype and tensor.is_contiguous(),
            f"a tensor of {tensor.dtype} with strides {tensor.stride()} where {dtype} is read",
        )
        self._keep.append(tensor)
        return tensor.data_ptr()


def _joined(vectors: Sequence[Tensor]) -> Tensor:
    """The one vector itself, or all in one."""
    return vectors[0] if len(vectors) == 1 else torch.cat(list(vectors))
