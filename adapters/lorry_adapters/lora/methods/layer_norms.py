"""LN tuning: the base's norms (or other target modules), trained and saved whole.

<module>.ln_tuning_layers.weight, <module>.ln_tuning_layers.bias
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lorry_adapters.lora.base import ModuleKind
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.keys import check_shapes
from lorry_adapters.lora.methods.method import Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields
from lorry_adapters.lora.methods.own_tensors import shape_of
from lorry_adapters.lora.methods.targeted import FoundModule, TargetedSpec
from lorry_adapters.lora.parts import Parts
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.replaced import OwnModule
from lorry_adapters.lora.target_modules import read_targets
from lorry_adapters.lora.tensor_file import TensorFile


@dataclass(frozen=True, slots=True)
class NormsSpec(TargetedSpec):
    """Created by `read_norms` only."""

    parameters: ClassVar = ()
    optional: ClassVar = ("ln_tuning_layers.weight", "ln_tuning_layers.bias")
    kinds: ClassVar = tuple(ModuleKind)

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        wanted = {
            key: shape_of(found.module, one.rpartition(".")[2]) for one, key in found.keys.items()
        }
        check_shapes(file, wanted, problems)
        return 0

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        for one in found:
            weight, bias = (
                file.read(one.keys[parameter]) if parameter in one.keys else None
                for parameter in self.optional
            )
            transposed = one.module.kind is ModuleKind.CONV1D
            parts.add(one.module.name, OwnModule(weight, bias, transposed))


def read_norms(fields: Fields, name: str) -> NormsSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets = read_targets(fields)
    own = OwnPartsFields.read(fields)
    fields.refuse_the_rest(frozenset({"init_weights"}), {})
    return NormsSpec(name, base_model, task_type, targets, own)


METHODS: Final = (Method("LN_TUNING", "LN tuning", read_norms, ("ln_tuning_",), scalable=False),)
