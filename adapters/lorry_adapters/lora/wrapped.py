"""Modules of the base with the effects of the adapters in the slots: base(x) + deltas.

Linears also have slots for plain pairs (`layers`). Embeddings, norms and other modules are wrapped
when the first adapter that changes them is placed, and cost nothing before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from lorry_adapters.lora.effects import Delta
from lorry_adapters.lora.plan import Plan, Tokens


class PlanHolder:
    """Passes the step's plan to the layers, for the duration of a `with` block."""

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


Bound = TypeVar("Bound")


class ModuleSlots(Generic[Bound]):
    """The effects of the adapters in the slots on one module."""

    def __init__(self) -> None:
        self._by_slot: dict[int, tuple[Bound, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_slot)

    def get(self, slot: int) -> tuple[Bound, ...]:
        return self._by_slot.get(slot, ())

    def place(self, slot: int, bound: tuple[Bound, ...]) -> None:
        """Fill a slot; an empty tuple empties it. Must not be called during a forward pass."""
        if bound:
            self._by_slot[slot] = bound
        else:
            self._by_slot.pop(slot, None)


class SlotEffects(ModuleSlots[Delta]):
    """The deltas of one module, by slot."""

    def of(self, x: Tensor, y_TO: Tensor, plan: Plan) -> list[tuple[Tokens, Tensor]]:
        """Return (tokens, their deltas) of every adapter in the step that changes this module, in
        the plan's order. `x` is `[T, ...]`, `y_TO` the base's output."""
        found = []
        for slot in plan.slots:
            deltas = self.get(slot)
            if not deltas:
                continue
            tokens, scale_M1 = plan.tokens_of(slot)
            x_M, y_MO = x[tokens], y_TO[tokens]
            total_MO = deltas[0](x_M, y_MO, scale_M1)
            for delta in deltas[1:]:
                total_MO = total_MO + delta(x_M, y_MO, scale_M1)
            found.append((tokens, total_MO))
        return found


def add(y_TO: Tensor, deltas: list[tuple[Tokens, Tensor]]) -> None:
    """Add in place; a token of two adapters gets both deltas."""
    for tokens, total_MO in deltas:
        if isinstance(tokens, slice):
            y_TO[tokens].add_(total_MO)
        else:
            y_TO.index_add_(0, tokens, total_MO.to(y_TO.dtype))


class Wrapped(nn.Module):
    """A module that is not a linear. Each kind has `effects`, its slots."""

    effects: ModuleSlots[Any]

    def __init__(self, base: nn.Module, holder: PlanHolder) -> None:
        super().__init__()
        self.base = base
        self._holder = holder

    @property
    def plan(self) -> Plan | None:
        return self._holder.plan

    def __getattr__(self, name: str) -> Any:
        # Modeling code reads a norm's weight or an embedding's size from the module.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class WrappedModule(Wrapped):
    """A module whose deltas are added to its output."""

    def __init__(self, base: nn.Module, holder: PlanHolder) -> None:
        super().__init__(base, holder)
        self.effects: SlotEffects = SlotEffects()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base(x, *args, **kwargs)
        plan = self.plan
        if plan is None or not self.effects:
            return y
        # [1, T] ids or [1, T, ...] activations; the remaining dimensions belong to a token. A layer
        # may have flattened them before its norm, as in OPT: then y is [T, O] already.
        x_T, y_T = (x, y) if y.ndim == 2 else (x.flatten(0, 1), y.flatten(0, 1))
        deltas = self.effects.of(x_T, y_T, plan)
        if deltas:
            y = y.clone()
            add(y.view(y_T.shape), deltas)
        return y
