"""A base layer plus its slots: y = base(x) + delta(x, plan). The base is never changed.

`install` wraps every linear module of a model. The wrapped model computes the same as before until
an adapter is placed and a plan names its slot.

Slot arrays are reserved at the largest rank allowed when a module first gets an adapter. On a
CPU the pages beyond an adapter's own rank are not written, or given back, so they cost address
space, not memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from lorry_adapters.lora.arrays import empty, zeros
from lorry_adapters.lora.base import BaseLayout, ModuleKind
from lorry_adapters.lora.effects import EffectTarget
from lorry_adapters.lora.expert_effects import LoraExperts, LoraRouter
from lorry_adapters.lora.kernels import Kernel, grouped
from lorry_adapters.lora.matrix_deltas import apart
from lorry_adapters.lora.plan import Plan
from lorry_adapters.lora.replaced import stacked
from lorry_adapters.lora.wrapped import (
    ModuleSlots,
    PlanHolder,
    SlotEffects,
    Wrapped,
    WrappedModule,
    add,
)

if TYPE_CHECKING:
    from lorry_adapters.lora.weights import AdapterWeights, LoraPair


class LoraLinear(nn.Module):
    """One linear module of the base, with slots."""

    def __init__(
        self,
        base: nn.Module,
        *,
        in_features: int,
        out_features: int,
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
        holder: PlanHolder,
    ) -> None:
        super().__init__()
        self.base = base
        self.in_features = in_features
        self.out_features = out_features
        self.ranks: tuple[int, ...] = (0,) * (num_slots + 1)
        self.effects = SlotEffects()
        self.tapped: list[Tensor] | None = None
        """If set, the input is kept here and passed on, and nothing is multiplied."""
        self.slot_bytes = 0
        # Rows of each slot that may be in use; those beyond are zero.
        self._filled = [0] * (num_slots + 1)
        self._max_rank = max_rank
        self._dtype = dtype
        self._device = device
        self._holder = holder
        self.kernel: Kernel | None = None
        """Adds the pairs of matrices; None for torch's operations."""
        self._a_SRI: Tensor | None = None
        self._b_SRO: Tensor | None = None
        self._rank_S: Tensor | None = None

    # Modeling code reads the dtype or device of a projection's weight.
    @property
    def weight(self) -> Tensor:
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.base, "bias", None)
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def place(self, slot: int, pair: LoraPair | None) -> None:
        """Copy `pair` into `slot`; None empties it. Must not be called during a forward pass."""
        rank = 0 if pair is None else pair.a_RI.shape[0]
        if not 1 <= slot < len(self.ranks) or rank > self._max_rank:
            # Not an assertion: slot 0 is the base's, and kernels read as many rows as the rank
            # says.
            raise ValueError(
                f"rank {rank} in slot {slot}, room for {self._max_rank} in {len(self.ranks) - 1}"
            )
        if pair is not None:
            if self._a_SRI is None or self._b_SRO is None:
                self._reserve()
            assert self._a_SRI is not None and self._b_SRO is not None
            a_RI, b_RO = self._a_SRI[slot], self._b_SRO[slot]
            # Even if copying fails halfway, the next adapter here clears it.
            filled = self._filled[slot] = max(rank, self._filled[slot])
            a_RI[:rank].copy_(pair.a_RI)
            # alpha / r is multiplied into B in fp32, before B is rounded to the compute dtype.
            b_RO[:rank].copy_((pair.b_OR.to(self._device, torch.float32) * pair.scaling).t())
            # A batch runs at its largest rank, so the rows beyond this one must be zero.
            empty(a_RI[rank:filled])
            empty(b_RO[rank:filled])
            self._filled[slot] = rank
        elif self._a_SRI is not None and self._b_SRO is not None and self._device.type == "cpu":
            filled, self._filled[slot] = self._filled[slot], 0
            empty(self._a_SRI[slot, :filled])
            empty(self._b_SRO[slot, :filled])
        if rank != self.ranks[slot]:
            self.ranks = (*self.ranks[:slot], rank, *self.ranks[slot + 1 :])
            if self._rank_S is not None:
                self._rank_S[slot] = rank

    def _reserve(self) -> None:
        shape = (len(self.ranks), self._max_rank)
        self._a_SRI = zeros((*shape, self.in_features), dtype=self._dtype, device=self._device)
        self._b_SRO = zeros((*shape, self.out_features), dtype=self._dtype, device=self._device)
        self._rank_S = torch.zeros(len(self.ranks), dtype=torch.int32, device=self._device)
        self.slot_bytes = self._a_SRI.nbytes + self._b_SRO.nbytes

    def forward(self, x: Tensor) -> Tensor:
        if self.tapped is not None:
            self.tapped.append(x)
            return x
        y: Tensor = self.base(x)
        plan = self._holder.plan
        if plan is None or (self._a_SRI is None and not self.effects):
            return y
        x_TI = x.reshape(-1, self.in_features).to(self._dtype)
        # If there are no logits to compute, the head gets a token without a plan.
        if plan.runs and x_TI.shape[0] != plan.num_tokens:
            raise ValueError(f"{x_TI.shape[0]} tokens, the plan has {plan.num_tokens}")
        y_TO = y.view(-1, self.out_features)
        # From the base's own output, so before anything is added to it.
        deltas = self.effects.of(x_TI, y_TO, plan) if self.effects else []
        if self._a_SRI is not None:
            assert self._b_SRO is not None and self._rank_S is not None
            add_pairs = self.kernel or grouped.add_planned
            add_pairs(y_TO, x_TI, self._a_SRI, self._b_SRO, self._rank_S, plan, self.ranks)
        add(y_TO, deltas)
        return y


@dataclass(frozen=True, slots=True, eq=False)
class BoundAdapter:
    """An adapter bound to the base, for `LoraModel.place`."""

    weights: AdapterWeights
    deltas: Mapping[str, tuple[Any, ...]]
    """By the path of the module: the deltas for its slots."""

    @property
    def plain(self) -> bool:
        """True if it consists of pairs of matrices only."""
        return not self.deltas and self.weights.prompt is None


_WRAPPERS: Final[Mapping[ModuleKind | None, Callable[[nn.Module, PlanHolder], Wrapped]]] = {
    ModuleKind.EXPERTS: LoraExperts,
    ModuleKind.ROUTER: LoraRouter,
}
"""By the kind of a module's parameters; all others have deltas of their output."""


def plain_weight(module: nn.Module) -> Tensor:
    """Return the weight of a linear that is not quantized."""
    assert isinstance(module, nn.Linear | nn.Embedding)
    return module.weight.detach().float().clone()


class LoraModel:
    """Every wrapped module of one base model, and the adapters in their slots."""

    def __init__(
        self,
        model: nn.Module,
        layout: BaseLayout,
        *,
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
        weight: Callable[[nn.Module], Tensor] = plain_weight,
        head: Set[str] = frozenset(),
    ) -> None:
        """`weight` returns a copy of a module's weight as a linear's, `[O, I]` in fp32; for a
        quantized one, dequantized. `head`: modules that receive the same tokens as the output
        head."""
        self.num_slots = num_slots
        self._model, self._weight = model, weight
        self._dtype, self._device = dtype, device
        self._head_path = layout.output_embedding
        self._beside_head = head
        self.body = PlanHolder()
        self.head = PlanHolder()
        """The output head gets fewer tokens than the layers below it: only those that are
        sampled."""
        self._kinds = {
            one.owner: one.shape.kind
            for one in layout.parameters.values()
            if one.shape.kind in _WRAPPERS
        }
        self._layers: dict[str, LoraLinear] = {}
        self.beyond_pairs: set[int] = set()
        """Slots whose adapters are more than pairs of matrices."""
        self._placed: dict[int, frozenset[str]] = {}
        self._touched: dict[int, frozenset[str]] = {}
        for module in layout.modules.values():
            if module.kind not in (ModuleKind.LINEAR, ModuleKind.CONV1D):
                continue
            parent, _, leaf = module.name.rpartition(".")
            owner = model.get_submodule(parent)
            layer = LoraLinear(
                getattr(owner, leaf),
                in_features=module.in_features,
                out_features=module.out_features,
                num_slots=num_slots,
                max_rank=max_rank,
                dtype=dtype,
                device=device,
                holder=self._holder_of(module.name),
            )
            setattr(owner, leaf, layer)
            self._layers[module.name] = layer

    @property
    def layers(self) -> Mapping[str, LoraLinear]:
        return self._layers

    @property
    def model(self) -> nn.Module:
        """The base, wrapped."""
        return self._model

    def use(self, kernel: Kernel | None) -> None:
        """Add pairs of matrices with `kernel` from now on; None for torch's operations."""
        for layer in self._layers.values():
            layer.kernel = kernel

    def prepare(self, weights: AdapterWeights) -> BoundAdapter:
        """Do all the work that needs the base's weights and no slot. Any thread; may be slow."""
        deltas = {}
        for path, effects in weights.effects.items():
            module = self._bare(path)
            base = EffectTarget(module, partial(self._weight, module), self._dtype, self._device)
            every = (effect.bind(base) for effect in stacked(effects))
            bound = apart([delta for delta in every if delta is not None])
            if bound:
                deltas[path] = bound
        return BoundAdapter(weights, deltas)

    def place(self, slot: int, adapter: BoundAdapter) -> None:
        """Replace the contents of `slot` by an adapter. Engine thread only."""
        pairs = adapter.weights.modules
        for name in self._placed.get(slot, frozenset()) - pairs.keys():
            self._layers[name].place(slot, None)
        self._placed[slot] = frozenset(pairs)
        for name, pair in pairs.items():
            self._layers[name].place(slot, pair)
        for path in self._touched.get(slot, frozenset()) - adapter.deltas.keys():
            self._effects(path).place(slot, ())
        self._touched[slot] = frozenset(adapter.deltas)
        for path, deltas in adapter.deltas.items():
            self._effects(path).place(slot, deltas)
        (self.beyond_pairs.discard if adapter.plain else self.beyond_pairs.add)(slot)

    def clear(self, slot: int) -> None:
        """Empty `slot`. Engine thread only."""
        for name in self._placed.pop(slot, frozenset()):
            self._layers[name].place(slot, None)
        for path in self._touched.pop(slot, frozenset()):
            self._effects(path).place(slot, ())
        self.beyond_pairs.discard(slot)

    def _holder_of(self, path: str) -> PlanHolder:
        above = path == self._head_path or path in self._beside_head
        return self.head if above else self.body

    def _bare(self, path: str) -> nn.Module:
        module = self._model.get_submodule(path)
        return module.base if isinstance(module, LoraLinear | Wrapped) else module

    def _effects(self, path: str) -> ModuleSlots[Any]:
        module = self._model.get_submodule(path)
        if isinstance(module, LoraLinear | Wrapped):
            return module.effects
        parent, _, leaf = path.rpartition(".")
        kind = _WRAPPERS.get(self._kinds.get(path), WrappedModule)
        made = kind(module, self._holder_of(path))
        setattr(self._model.get_submodule(parent), leaf, made)
        return made.effects

    @property
    def slot_bytes(self) -> int:
        """Bytes reserved for the slots of all modules so far."""
        return sum(layer.slot_bytes for layer in self._layers.values())

    @contextmanager
    def tapping(self) -> Iterator[list[Tensor]]:
        """Within the block, the output head passes its input on, and it is collected in the
        list."""
        head = None if self._head_path is None else self._layers.get(self._head_path)
        assert head is not None and head.tapped is None
        found: list[Tensor] = []
        head.tapped = found
        try:
            yield found
        finally:
            head.tapped = None

    @contextmanager
    def planned(self, body: Plan, head: Plan) -> Iterator[None]:
        with self.body.holding(body), self.head.holding(head):
            yield
