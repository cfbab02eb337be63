"""A base layer plus its slots: y = base(x) + delta(x, plan). The base is never touched.

`install` wraps every linear module of a model; the wrapped model computes what it
did before until an adapter is placed and a plan names its slot.

Slot arrays are reserved at the largest rank allowed, when a module first gets an
adapter. On a CPU the pages beyond an adapter's own rank are never written, so
they cost address space, not memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorry_adapters.lora.arrays import zeros
from lorry_adapters.lora.base import BaseLayout, ModuleKind
from lorry_adapters.lora.kernels import grouped
from lorry_adapters.lora.plan import Plan

if TYPE_CHECKING:
    from lorry_adapters.lora.weights import AdapterWeights, LoraPair


class PlanHolder:
    """Hands the step's plan to the layers, for the length of a `with` block."""

    def __init__(self) -> None:
        self._plan: Plan | None = None

    @property
    def plan(self) -> Plan | None:
        return self._plan

    @contextmanager
    def holding(self, plan: Plan) -> Iterator[None]:
        assert self._plan is None, "plans do not nest"
        self._plan = plan
        try:
            yield
        finally:
            self._plan = None


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
        self.slot_bytes = 0
        # Rows of each slot that may hold something; what lies beyond is zero.
        self._filled = [0] * (num_slots + 1)
        self._max_rank = max_rank
        self._dtype = dtype
        self._device = device
        self._holder = holder
        self._a_SRI: Tensor | None = None
        self._b_SRO: Tensor | None = None

    # Modeling code asks a projection for its weight's dtype or device.
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
        """Copy `pair` into `slot`; None empties it. Not while a forward pass runs."""
        assert 1 <= slot < len(self.ranks)
        rank = 0 if pair is None else pair.a_RI.shape[0]
        if pair is not None:
            assert rank <= self._max_rank
            if self._a_SRI is None or self._b_SRO is None:
                self._reserve()
            assert self._a_SRI is not None and self._b_SRO is not None
            a_RI, b_RO = self._a_SRI[slot], self._b_SRO[slot]
            # Even if copying fails halfway, the next adapter here clears what it left.
            filled = self._filled[slot] = max(rank, self._filled[slot])
            a_RI[:rank].copy_(pair.a_RI)
            # alpha / r goes into B in fp32, before B is rounded to the compute dtype.
            b_RO[:rank].copy_((pair.b_OR.to(self._device, torch.float32) * pair.scaling).t())
            # A batch runs at its largest rank: what is beyond ours must be zero.
            a_RI[rank:filled].zero_()
            b_RO[rank:filled].zero_()
            self._filled[slot] = rank
        if rank != self.ranks[slot]:
            self.ranks = (*self.ranks[:slot], rank, *self.ranks[slot + 1 :])

    def _reserve(self) -> None:
        shape = (len(self.ranks), self._max_rank)
        self._a_SRI = zeros((*shape, self.in_features), dtype=self._dtype, device=self._device)
        self._b_SRO = zeros((*shape, self.out_features), dtype=self._dtype, device=self._device)
        self.slot_bytes = self._a_SRI.nbytes + self._b_SRO.nbytes

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        plan = self._holder.plan
        if plan is None or self._a_SRI is None:
            return y
        mine = plan.for_ranks(self.ranks)
        if mine is None:
            return y
        assert self._b_SRO is not None
        x_TI = x.reshape(-1, self.in_features).to(self._dtype)
        grouped.add_delta(y.view(-1, self.out_features), x_TI, self._a_SRI, self._b_SRO, mine)
        return y


class LoraModel:
    """Every wrapped module of one base model, and where adapters are placed in them."""

    def __init__(
        self,
        model: nn.Module,
        layout: BaseLayout,
        *,
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_slots = num_slots
        self.body = PlanHolder()
        self.head = PlanHolder()
        """The output head sees fewer tokens than the layers below it: only those that
        are sampled."""
        self._layers: dict[str, LoraLinear] = {}
        self._placed: dict[int, frozenset[str]] = {}
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
                holder=self.head if module.name == layout.output_embedding else self.body,
            )
            setattr(owner, leaf, layer)
            self._layers[module.name] = layer

    @property
    def layers(self) -> Mapping[str, LoraLinear]:
        return self._layers

    def prepare(self, weights: AdapterWeights) -> AdapterWeights:
        """Do what `place` would need the base's own weights for. Any thread."""
        return weights

    def clear(self, slot: int) -> None:
        """Empty `slot`. Engine thread only."""
        for name in self._placed.pop(slot, frozenset()):
            self._layers[name].place(slot, None)

    def place(self, slot: int, weights: AdapterWeights) -> None:
        """Fill `slot` with an adapter; whatever it held is gone. Engine thread only."""
        for name in self._placed.get(slot, frozenset()) - weights.modules.keys():
            self._layers[name].place(slot, None)
        self._placed[slot] = frozenset(weights.modules)
        for name, pair in weights.modules.items():
            self._layers[name].place(slot, pair)

    @property
    def slot_bytes(self) -> int:
        """Reserved for the slots so far, all modules."""
        return sum(layer.slot_bytes for layer in self._layers.values())

    @contextmanager
    def planned(self, body: Plan, head: Plan) -> Iterator[None]:
        with self.body.holding(body), self.head.holding(head):
            yield
