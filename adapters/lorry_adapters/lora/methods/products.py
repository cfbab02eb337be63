"""LoHa and LoKr: an element-wise and a Kronecker product of small matrices as a linear's delta.

    <linear>.hada_w1_a [out, r], hada_w1_b [r, in], hada_w2_a, hada_w2_b
                        W = (w1_a w1_b) * (w2_a w2_b): arXiv:2108.06098, section 2
    <linear>.lokr_w1 [a, c] or lokr_w1_a [a, r], lokr_w1_b [r, c]; lokr_w2 [b, d] or its two
                        W = w1 (x) w2, out = a b, in = c d: arXiv:2309.14859, section 3.2

An element-wise product of two matrices of rank r has rank r^2 and is a pair of that rank,
exactly: row (i, j) of A is w1_b[i] * w2_b[j]. A Kronecker product is applied as it is, in two
small steps, since its rank is that of its factors multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import fields as check
from lorry_adapters.lora.base import BaseLayout, BaseModule
from lorry_adapters.lora.effects import Kronecker
from lorry_adapters.lora.fields import Fields
from lorry_adapters.lora.keys import LINEAR, PREFIX, check_shapes, sort_keys, unexpected
from lorry_adapters.lora.methods.own_parts import OwnPartsFields, read_own_parts
from lorry_adapters.lora.methods.pairs import disagreements, not_linear, read_rules
from lorry_adapters.lora.parts import Contents, LoraPair, Parts, SpecBase
from lorry_adapters.lora.patterns import Budget, SuffixRules
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.targets import Targets, read_targets
from lorry_adapters.lora.tensor_file import TensorFile

_HADAMARD: Final = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_KRONECKER: Final = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
_TRAINING: Final = frozenset(
    {
        "decompose_both",  # the file's keys and shapes say it, too
        "decompose_factor",
        "init_weights",
        "module_dropout",
        "rank_dropout",
        "rank_dropout_scale",
        "use_effective_conv2d",  # of convolutions
    }
)


@dataclass(frozen=True, slots=True)
class ProductSpec(SpecBase):
    """Made by `read_loha` and `read_lokr` only."""

    targets: Targets
    own: OwnPartsFields
    r: int
    alpha: float
    _ranks: SuffixRules[int] = field(repr=False)
    _alphas: SuffixRules[float] = field(repr=False)

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> Contents:
        hadamard = self.peft_type == "LOHA"
        names = _HADAMARD if hadamard else _KRONECKER
        keys = sort_keys(file, layout, names, problems)
        own = read_own_parts(self.own, self.targets, file, layout, keys.rest, problems)
        problems.extend(unexpected(own.unknown, f"{PREFIX}<module>.{names[0]} and its like"))
        ranks, budget = {}, Budget()
        try:
            for name, mine in keys.modules.items():
                module = layout.modules[name]
                if module.kind not in LINEAR:
                    problems.append(not_linear(module))
                elif hadamard:
                    rank = self._rank(name, budget)
                    _check_hadamard(file, module, mine, rank, problems)
                    ranks[name] = rank * rank
                else:
                    _check_kronecker(file, module, mine, problems)
            if sound:
                found = keys.modules
                problems.extend(
                    disagreements(self.targets, layout, budget, found, refused=not_linear)
                )
        except InvalidAdapter as error:
            problems.extend(error.problems)

        def read() -> Parts:
            parts = Parts()
            for name, mine in keys.modules.items():
                scaling = self._scaling(name, Budget())
                if hadamard:
                    parts.pairs[name] = _hadamard_pair(file, mine, scaling)
                else:
                    w1, w2 = _factor(file, mine, "lokr_w1"), _factor(file, mine, "lokr_w2")
                    parts.add(name, Kronecker(w1, w2, scaling))
            own.read(parts)
            return parts

        return Contents(
            modules=(*keys.modules, *own.modules), read=read, ranks=ranks, labels=own.labels
        )

    def _rank(self, module: str, budget: Budget) -> int:
        return self._ranks.find(module, budget) or self.r

    def _scaling(self, module: str, budget: Budget) -> float:
        alpha = self._alphas.find(module, budget)
        return (self.alpha if alpha is None else alpha) / self._rank(module, budget)


def read_loha(fields: Fields) -> ProductSpec:
    return _read("LOHA", fields)


def read_lokr(fields: Fields) -> ProductSpec:
    return _read("LOKR", fields)


def _read(peft_type: str, fields: Fields) -> ProductSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets = read_targets(fields)
    r = fields.take("r", check.rank, 8)
    alpha = fields.take("alpha", check.alpha, 8.0)
    ranks = fields.take("rank_pattern", check.mapping(check.rank), {})
    alphas = fields.take("alpha_pattern", check.mapping(check.alpha), {})
    own = OwnPartsFields.read(fields)
    fields.refuse_the_rest(_TRAINING, {})
    rules = [read_rules(fields, "rank_pattern", ranks), read_rules(fields, "alpha_pattern", alphas)]
    return ProductSpec(peft_type, base_model, task_type, targets, own, r, alpha, *rules)


def _check_hadamard(
    file: TensorFile, module: BaseModule, mine: Mapping[str, str], r: int, problems: list[str]
) -> None:
    missing = [name for name in _HADAMARD if name not in mine]
    if missing:
        problems.append(f"{shown(module.name)} has no {' and no '.join(missing)}")
        return
    shapes = {"a": (module.out_features, r), "b": (r, module.in_features)}
    check_shapes(file, {mine[name]: shapes[name[-1]] for name in _HADAMARD}, problems)


def _hadamard_pair(file: TensorFile, mine: Mapping[str, str], scaling: float) -> LoraPair:
    a1, b1, a2, b2 = (file.read(mine[name]).float() for name in _HADAMARD)
    b_OR = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    a_RI = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return LoraPair(a_RI, b_OR, scaling)


def _check_kronecker(
    file: TensorFile, module: BaseModule, mine: Mapping[str, str], problems: list[str]
) -> None:
    sizes = []
    for name in ("lokr_w1", "lokr_w2"):
        size = _factor_shape(file, mine, name)
        if size is None:
            problems.append(f"{shown(module.name)} has no usable {name}, whole or as two matrices")
            return
        sizes.append(size)
    (a, c), (b, d) = sizes
    if (a * b, c * d) != (module.out_features, module.in_features):
        problems.append(
            f"{shown(module.name)}: the product of {[a, c]} and {[b, d]} is {[a * b, c * d]}; this "
            f"base needs {[module.out_features, module.in_features]}"
        )


def _factor_shape(file: TensorFile, mine: Mapping[str, str], name: str) -> tuple[int, int] | None:
    if name in mine:
        shape = file.entries[mine[name]].shape
        return (shape[0], shape[1]) if len(shape) == 2 else None
    if f"{name}_a" in mine and f"{name}_b" in mine:
        a, b = (file.entries[mine[f"{name}_{half}"]].shape for half in "ab")
        if len(a) == len(b) == 2 and a[1] == b[0]:
            return a[0], b[1]
    return None


def _factor(file: TensorFile, mine: Mapping[str, str], name: str) -> Tensor:
    if name in mine:
        return file.read(mine[name])
    return file.read(mine[f"{name}_a"]).float() @ file.read(mine[f"{name}_b"]).float()
