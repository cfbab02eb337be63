"""Effects on embeddings, and whole modules of an adapter that replace the base's own.

Letters as in `effects`: M tokens of one adapter, K trained rows, V vocabulary, H width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.effects import Delta, Dora, Effect, EffectTarget, Indivisible, PairBias
from lorry_adapters.lora.matrix_deltas import OwnLinear


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingPair(Indivisible):
    """y = table[id] + s A[:, id] B', times the factor of models that scale embeddings."""

    a_RV: Tensor
    b_HR: Tensor
    scaling: float

    @property
    def nbytes(self) -> int:
        return self.a_RV.nbytes + self.b_HR.nbytes

    def bind(self, base: EffectTarget) -> Delta:
        a_VR = base.held(self.a_RV.T.contiguous())
        b_RH = base.held(self.b_HR.T.float() * self.scaling)
        factor = _embedding_factor(base.module)

        def delta(ids_M: Tensor, y_MH: Tensor, scale_M1: Tensor) -> Tensor:
            return (a_VR[ids_M] @ b_RH) * (scale_M1 * factor)

        return delta


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingDora(Indivisible):
    """The same with a magnitude: y = m / |W + s (B A)'| (table[id] + s A[:, id] B').

    |.| is the norm of each of the H columns, over the whole vocabulary: PEFT's DoRA with the table
    as the weight of a linear from tokens to features. Like `effects.Dora`, it needs three sums of
    squares and no copy of the table.
    """

    a_RV: Tensor
    b_HR: Tensor
    magnitude_H: Tensor
    scaling: float

    @property
    def nbytes(self) -> int:
        return self.a_RV.nbytes + self.b_HR.nbytes + self.magnitude_H.nbytes

    def bind(self, base: EffectTarget) -> Delta:
        table_VH = base.weight()
        a_RV, b_HR = (one.to(table_VH.device).float() for one in (self.a_RV, self.b_HR))
        w_H = table_VH.double().square().sum(0)
        c_H = (b_HR * (a_RV @ table_VH).T).double().sum(1)
        d_H = ((b_HR @ (a_RV @ a_RV.T)) * b_HR).double().sum(1)
        w_H, c_H, d_H = (v.float().to(base.device) for v in (w_H, c_H, d_H))
        magnitude_H = self.magnitude_H.float().to(base.device)
        a_VR, b_RH = base.held(a_RV.T.contiguous()), base.held(b_HR.T.contiguous())
        factor, scaling = _embedding_factor(base.module), self.scaling

        def delta(ids_M: Tensor, y_MH: Tensor, scale_M1: Tensor) -> Tensor:
            s_M1 = scale_M1.float() * scaling
            norm_MH = (w_H + 2 * s_M1 * c_H + s_M1.square() * d_H).clamp_min(0).sqrt()
            gain_MH = magnitude_H / norm_MH
            pair_MH = (a_VR[ids_M] @ b_RH) * (s_M1 * factor)
            return ((gain_MH - 1) * y_MH + gain_MH * pair_MH).to(y_MH.dtype)

        return delta


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows(Indivisible):
    """Trained rows of an embedding table, which replace the base's."""

    ids_K: Tensor
    rows_KH: Tensor

    @property
    def nbytes(self) -> int:
        return self.ids_K.nbytes + self.rows_KH.nbytes

    def bind(self, base: EffectTarget) -> Delta | None:
        if not len(self.ids_K):
            return None
        # Sorted: an adapter may have a row for every token, and a step looks up many of them.
        ids_K, order_K = self.ids_K.sort(stable=True)
        rows_KH = self.rows_KH[order_K].float() * _embedding_factor(base.module)
        rows_KH, ids_K = base.held(rows_KH), ids_K.to(base.device)

        def delta(ids_M: Tensor, y_MH: Tensor, scale: Tensor) -> Tensor:
            # If an id is listed twice, the last row counts, as in an index copy.
            last_M = (torch.searchsorted(ids_K, ids_M, right=True) - 1).clamp_min(0)
            mine_M1 = (ids_K[last_M] == ids_M)[:, None]
            return torch.where(mine_M1, rows_KH[last_M] - y_MH, 0)

        return delta


@dataclass(frozen=True, slots=True, eq=False)
class TokenLogits(Indivisible):
    """Trained rows of an output head; often the same as those of its embedding.

    PEFT's layer omits the head's bias for all tokens, so the adapter was trained without it.
    """

    ids_K: Tensor
    rows_KH: Tensor

    @property
    def nbytes(self) -> int:
        return self.ids_K.nbytes + self.rows_KH.nbytes

    def bind(self, base: EffectTarget) -> Delta:
        rows_KH, ids_K = base.held(self.rows_KH), self.ids_K.to(base.device)
        less_V = None if base.bias is None else -base.held(base.bias)

        def delta(x_MH: Tensor, y_MV: Tensor, scale: Tensor) -> Tensor:
            delta_MV = torch.zeros_like(y_MV)
            if less_V is not None:
                delta_MV = delta_MV + less_V
            delta_MV[:, ids_K] = x_MH @ rows_KH.T - y_MV[:, ids_K]
            return delta_MV

        return delta


@dataclass(frozen=True, slots=True, eq=False)
class OwnModule(Indivisible):
    """A whole trained module, which replaces the base's (PEFT's `modules_to_save`)."""

    weight: Tensor | None
    """`[O, I]` of a linear, `[V, H]` of an embedding, `[H]` of a norm."""
    bias: Tensor | None
    transposed: bool = False
    """GPT-2's linears are saved as they are stored: `[I, O]`.

    A table or a head may have fewer rows than the base. The tokens beyond them are not in the
    adapter's vocabulary. They are never drawn; in a prompt they are read as the base reads them.
    """
    asked: bool = True
    """True if the config names it. PEFT also saves tables that are not named, mostly as copies."""

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.weight, self.bias) if part is not None)

    def bind(self, base: EffectTarget) -> Delta | None:
        if self._is_copy(base):
            return None
        module, stored = base.module, self.weight
        if isinstance(module, nn.Embedding):
            assert stored is not None
            return _other_table(stored.to(base.device), module, base.dtype)
        bias = None if self.bias is None else base.held(self.bias)
        if stored is not None and stored.dim() == 2:
            weight_OI = stored.T if self.transposed else stored
            outputs = weight_OI.shape[0]
            own = bias if bias is not None or base.bias is None else base.bias[:outputs]
            bound = OwnLinear(weight_OI, own, base.dtype, base.device)
            if base.device.type != "cpu":
                # A step should not wait for the copy to the device.
                bound.held()
            return bound
        weight = None if stored is None else base.held(stored)
        # A norm: its own computation with other numbers.
        mine = copy.deepcopy(module)
        with torch.no_grad():
            for name, values in (("weight", weight), ("bias", bias)):
                if values is not None:
                    setattr(mine, name, nn.Parameter(values, requires_grad=False))
        return lambda x, y, scale: mine(x) - y

    def as_linear(self) -> Tensor:
        """Return its weight in the form of `EffectTarget.weight`."""
        assert self.weight is not None
        return self.weight.float().T if self.transposed else self.weight.float()

    def _is_copy(self, base: EffectTarget) -> bool:
        """Return whether it equals the base's. PEFT saves untrained embeddings beside some
        adapters."""
        if self.weight is None or self.bias is not None or self.weight.dim() != 2:
            return False
        theirs = base.weight()
        mine = self.as_linear().to(theirs.device)
        if isinstance(base.module, nn.Embedding):
            theirs = theirs[: mine.shape[0]]
        if mine.shape != theirs.shape:
            return False
        return torch.equal(mine, theirs) or torch.allclose(_rounded(mine), theirs, rtol=1e-6)


def _other_table(weight_KH: Tensor, module: nn.Embedding, dtype: torch.dtype) -> Delta:
    """The table stays as it is stored: a step converts the rows that it looks up."""
    factor, rows = _embedding_factor(module), weight_KH.shape[0]
    if rows == module.num_embeddings:
        return lambda ids_M, y_MH, scale: weight_KH[ids_M].to(dtype) * factor - y_MH

    def delta(ids_M: Tensor, y_MH: Tensor, scale: Tensor) -> Tensor:
        mine_MH = weight_KH[ids_M.clamp_max(rows - 1)].to(dtype) * factor
        return torch.where((ids_M < rows)[:, None], mine_MH - y_MH, 0)

    return delta


@dataclass(frozen=True, slots=True, eq=False)
class OnTop(Indivisible):
    """The other effects of an adapter on a module that it replaces. PEFT's layers around such a
    module (token rows, DoRA's norm) use the replacing weight as their base."""

    own: OwnModule
    rest: tuple[Effect, ...]

    @property
    def nbytes(self) -> int:
        return self.own.nbytes + sum(effect.nbytes for effect in self.rest)

    def bind(self, base: EffectTarget) -> Delta | None:
        """Bind on the replacing module. Raises InvalidAdapter if an effect would use the base's."""
        below = self.own.bind(base)
        if below is not None:
            blind = {type(e).__name__ for e in self.rest if not isinstance(e, _SEES_WEIGHT)}
            if blind:
                raise InvalidAdapter(
                    [
                        f"{', '.join(sorted(blind))} is not served on a module whose own weight "
                        "the adapter also changes"
                    ]
                )
            base = replace(base, weight=self.own.as_linear)
        bound = (effect.bind(base) for effect in self.rest)
        above = [delta for delta in bound if delta is not None]

        def delta(x: Tensor, y: Tensor, scale_M1: Tensor) -> Tensor:
            first = torch.zeros_like(y) if below is None else below(x, y, scale_M1)
            return first + sum(one(x, y + first, scale_M1) for one in above)

        return delta if below is not None or above else None


_SEES_WEIGHT: Final = (Dora, EmbeddingDora, EmbeddingPair, PairBias, TokenLogits, TokenRows)
"""Effects that use only the given weight and output of the base, and nothing else of the module."""


def stacked(effects: Sequence[Any]) -> Sequence[Any]:
    """Put an adapter's effects on one module on top of its replacement of the module, if any."""
    own = next((effect for effect in effects if isinstance(effect, OwnModule)), None)
    if own is None or len(effects) == 1:
        return effects
    return (OnTop(own, tuple(effect for effect in effects if effect is not own)),)


def _rounded(weight_OI: Tensor) -> Tensor:
    """Round to 8 bits per row, like a base in int8."""
    scale_O1 = weight_OI.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return (weight_OI / scale_O1).round() * scale_O1


def _embedding_factor(module: nn.Module) -> float:
    """Return the factor of an embedding module that scales its output, as in Gemma 3."""
    factor = getattr(module, "embed_scale", None)
    return 1.0 if factor is None else float(factor)
