"""SHiRA and Super-Tuning: a number is added to each of a few elements of a linear's weight.

    <linear>.shira_weight           [n]         added at
    <linear>.shira_indices          [2, n]      (row, column), whole numbers: arXiv:2406.13175
    <linear>.supertuning_values     [n]         added at
    <linear>.supertuning_indices    [n]         row * in + column: arXiv:2607.09287
    <linear>.supertuning_lora_A.weight [r, in], supertuning_lora_B.weight [out, r]    if r is set

Indices outside the weight are refused when the file is checked and whenever it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.keys import check_shapes
from lorry_adapters.lora.methods.method import Gate, Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields
from lorry_adapters.lora.methods.targeted import FoundModule, TargetedSpec
from lorry_adapters.lora.parts import LoraPair, Parts
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.sparse import Sparse
from lorry_adapters.lora.target_modules import read_targets
from lorry_adapters.lora.tensor_file import TensorFile

_SHIRA_TRAINING: Final = frozenset(
    # How the indices were chosen; the file contains them.
    {"fan_in_fan_out", "init_weights", "mask_type", "r", "random_seed"}
)
_SUPER_TRAINING: Final = frozenset({"init_weights", "lora_dropout", "select_top", "sparsity"})


@dataclass(frozen=True, slots=True)
class ShiraSpec(TargetedSpec):
    """Created by `read_shira` only."""

    parameters: ClassVar = ("shira_weight", "shira_indices")
    places: ClassVar = ("shira_indices",)

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        values, places = (found.keys[one] for one in self.parameters)
        count = file.entries[values].elements
        before = len(problems)
        check_shapes(file, {values: (count,), places: (2, count)}, problems)
        if len(problems) == before:
            rows, columns = found.module.out_features, found.module.in_features
            both = file.read_places(places, max(rows, columns))
            for axis, size in enumerate((rows, columns)):
                if bool((both[axis] >= size).any()):
                    problems.append(
                        f"{shown(places)} contains indices outside the weight, which is "
                        f"{[rows, columns]} in this base"
                    )
        return 0

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        for one in found:
            shape = one.module.out_features, one.module.in_features
            values_N = file.read(one.keys["shira_weight"])
            places_2N = file.read_places(one.keys["shira_indices"], max(shape)).int()
            parts.add(one.module.name, Sparse(places_2N[0], places_2N[1], values_N, shape))


@dataclass(frozen=True, slots=True)
class SupertuningSpec(TargetedSpec):
    """Created by `read_supertuning` only."""

    r: int
    """The rank of the pair beside it; 0 if there is none."""
    alpha: float
    parameters: ClassVar = ("supertuning_values", "supertuning_indices")
    optional: ClassVar = ("supertuning_lora_A.weight", "supertuning_lora_B.weight")
    places: ClassVar = ("supertuning_indices",)

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        module, (values, places) = found.module, (found.keys[one] for one in self.parameters)
        count = file.entries[values].elements
        wanted: dict[str, tuple[int, ...]] = {values: (count,), places: (count,)}
        there = [found.keys[one] for one in self.optional if one in found.keys]
        if len(there) != (2 if self.r else 0):
            problems.append(
                f"{shown(module.name)} has {len(there)} matrices of a pair, but r is "
                f"{self.r or 'not set'}"
            )
        elif self.r:
            wanted[there[0]] = (self.r, module.in_features)
            wanted[there[1]] = (module.out_features, self.r)
        check_shapes(file, wanted, problems)
        file.read_places(places, module.in_features * module.out_features)
        return self.r

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        for one in found:
            name = one.module.name
            inputs, outputs = one.module.in_features, one.module.out_features
            flat_N = file.read_places(one.keys["supertuning_indices"], inputs * outputs)
            rows_N = torch.div(flat_N, inputs, rounding_mode="floor")
            places = rows_N.int(), (flat_N - rows_N * inputs).int()
            values_N = file.read(one.keys["supertuning_values"])
            parts.add(name, Sparse(*places, values_N, (outputs, inputs)))
            if self.r:
                a_RI, b_OR = (file.read(one.keys[half]) for half in self.optional)
                parts.pairs[name] = LoraPair(a_RI, b_OR, self.alpha / self.r)


def read_shira(fields: Fields, name: str) -> ShiraSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets, own = read_targets(fields), OwnPartsFields.read(fields)
    fields.refuse_the_rest(_SHIRA_TRAINING, {})
    return ShiraSpec(name, base_model, task_type, targets, own)


def read_supertuning(fields: Fields, name: str) -> SupertuningSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets, own = read_targets(fields), OwnPartsFields.read(fields)
    r = fields.take("r", check.rank, 0)
    alpha = fields.take("lora_alpha", check.alpha, 2.0 * r)
    if not fields.take("save_precomputed_indices", check.boolean, True):
        fields.problems.append(
            "save_precomputed_indices is false: the trained indices would be derived from the "
            "base's weights, and rounded weights give others; save it again with true"
        )
    fields.refuse_the_rest(_SUPER_TRAINING, {})
    return SupertuningSpec(name, base_model, task_type, targets, own, r, alpha)


METHODS: Final = (
    Method("SHIRA", "SHiRA", read_shira, ("shira_",), Gate("shira_weight")),
    Method("SUPERTUNING", "Super-Tuning", read_supertuning, ("supertuning_",)),
)
