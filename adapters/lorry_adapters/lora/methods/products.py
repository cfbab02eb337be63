"""LoHa and LoKr: an element-wise and a Kronecker product of small matrices as a linear's delta.

    <linear>.hada_w1_a [out, r], hada_w1_b [r, in], hada_w2_a, hada_w2_b
                        W = (w1_a w1_b) * (w2_a w2_b): arXiv:2108.06098, section 2
    <linear>.lokr_w1 [a, c] or lokr_w1_a [a, r], lokr_w1_b [r, c]; lokr_w2 [b, d] or its two
                        W = w1 (x) w2, out = a b, in = c d: arXiv:2309.14859, section 3.2

An element-wise product of two matrices of rank r has rank r^2 and equals a pair of that rank:
row (i, j) of A is w1_b[i] * w2_b[j]. The rank of a Kronecker product is the product of its
factors' ranks, so it is applied in two small steps instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from torch import Tensor

from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.base import BaseModule
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.effects import Kronecker
from lorry_adapters.lora.keys import check_shapes
from lorry_adapters.lora.methods.method import Gate, Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields
from lorry_adapters.lora.methods.pairs import read_rules
from lorry_adapters.lora.methods.targeted import MAX_DENSE, FoundModule, TargetedSpec
from lorry_adapters.lora.parts import LoraPair, Parts
from lorry_adapters.lora.patterns import Budget, SuffixRules
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.target_modules import read_targets
from lorry_adapters.lora.tensor_file import TensorFile

_TRAINING: Final = frozenset(
    {
        "decompose_both",  # the file's keys and shapes show it
        "decompose_factor",
        "init_weights",
        "module_dropout",
        "rank_dropout",
        "rank_dropout_scale",
        "use_effective_conv2d",  # for convolutions only
    }
)


@dataclass(frozen=True, slots=True)
class ProductSpec(TargetedSpec):
    """Shared by LoHa and LoKr."""

    r: int
    alpha: float
    _ranks: SuffixRules[int] = field(repr=False)
    _alphas: SuffixRules[float] = field(repr=False)

    def rank_of(self, module: str, budget: Budget) -> int:
        return self._ranks.find(module, budget) or self.r

    def scaling_of(self, module: str, budget: Budget) -> float:
        alpha = self._alphas.find(module, budget)
        return (self.alpha if alpha is None else alpha) / self.rank_of(module, budget)


class LoHaSpec(ProductSpec):
    """Created by `read_loha` only."""

    __slots__ = ()
    parameters: ClassVar = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        rank = self.rank_of(found.module.name, budget)
        shapes = {"a": (found.module.out_features, rank), "b": (rank, found.module.in_features)}
        wanted = {found.keys[one]: shapes[one[-1]] for one in self.parameters}
        check_shapes(file, wanted, problems)
        return rank * rank

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        budget = Budget()
        for one in found:
            scaling = self.scaling_of(one.module.name, budget)
            a1, b1, a2, b2 = (file.read(one.keys[name]).float() for name in self.parameters)
            b_OR = (a1[:, :, None] * a2[:, None, :]).flatten(1)
            a_RI = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
            parts.pairs[one.module.name] = LoraPair(a_RI, b_OR, scaling)


class LoKrSpec(ProductSpec):
    """Created by `read_lokr` only."""

    __slots__ = ()
    parameters: ClassVar = ()
    optional: ClassVar = (
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    )  # fmt: skip

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        _check_kronecker(file, found.module, found.keys, problems)
        return 0

    def check_shared(
        self,
        file: TensorFile,
        found: Sequence[FoundModule],
        shared: Sequence[str],
        problems: list[str],
    ) -> None:
        # Factors made of two matrices: a small file may describe a factor as large as the weight.
        made = [
            a * b * 4
            for one in found
            for name in ("lokr_w1", "lokr_w2")
            if name not in one.keys
            for a, b in [_factor_shape(file, one.keys, name) or (0, 0)]
        ]
        if sum(made) > MAX_DENSE:
            problems.append(
                f"LOKR's factors would take {sum(made) >> 20} MiB when multiplied out; at most "
                f"{MAX_DENSE >> 20} are allowed. Train it with a decompose_factor that makes both "
                "factors small"
            )

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        budget = Budget()
        for one in found:
            scaling = self.scaling_of(one.module.name, budget)
            w1, w2 = (_factor(file, one.keys, name) for name in ("lokr_w1", "lokr_w2"))
            parts.add(one.module.name, Kronecker(w1, w2, scaling))


def read_loha(fields: Fields, name: str) -> ProductSpec:
    return _read(LoHaSpec, fields, name)


def read_lokr(fields: Fields, name: str) -> ProductSpec:
    return _read(LoKrSpec, fields, name)


def _read(spec: type[ProductSpec], fields: Fields, name: str) -> ProductSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets = read_targets(fields)
    r = fields.take("r", check.rank, 8)
    alpha = fields.take("alpha", check.alpha, 8.0)
    ranks = fields.take("rank_pattern", check.mapping(check.rank), {})
    alphas = fields.take("alpha_pattern", check.mapping(check.alpha), {})
    own = OwnPartsFields.read(fields)
    fields.refuse_the_rest(_TRAINING, {})
    rules = [read_rules(fields, "rank_pattern", ranks), read_rules(fields, "alpha_pattern", alphas)]
    return spec(name, base_model, task_type, targets, own, r, alpha, *rules)


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


METHODS: Final = (
    Method("LOHA", "LoHa", read_loha, ("hada_",), Gate("hada_w2_b")),
    Method("LOKR", "LoKr", read_lokr, ("lokr_",), Gate("lokr_w1")),
)
