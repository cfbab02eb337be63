"""BEFT: a trained vector that is added to a linear's output.

<linear>.beft_bias      [1, out]    arXiv:2509.15974
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.effects import PairBias
from lorry_adapters.lora.keys import check_shapes
from lorry_adapters.lora.methods.method import Gate, Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields
from lorry_adapters.lora.methods.targeted import FoundModule, TargetedSpec
from lorry_adapters.lora.parts import Parts
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.target_modules import read_targets
from lorry_adapters.lora.tensor_file import TensorFile


@dataclass(frozen=True, slots=True)
class BiasesSpec(TargetedSpec):
    """Created by `read_beft` only."""

    parameters: ClassVar = ("beft_bias",)

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        check_shapes(file, {found.keys["beft_bias"]: (1, found.module.out_features)}, problems)
        return 0

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        for one in found:
            bias_O = file.read(one.keys["beft_bias"]).flatten()
            parts.add(one.module.name, PairBias(bias_O, 1.0))


def read_beft(fields: Fields, name: str) -> BiasesSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets, own = read_targets(fields), OwnPartsFields.read(fields)
    fields.refuse_the_rest(frozenset({"init_weights"}), {})
    return BiasesSpec(name, base_model, task_type, targets, own)


METHODS: Final = (Method("BEFT", "BEFT", read_beft, ("beft_",), Gate("beft_bias")),)
