"""LN tuning: the base's norms (or whatever modules are targeted), trained and saved whole.

<module>.ln_tuning_layers.weight, <module>.ln_tuning_layers.bias
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout, ModuleKind
from lorry_adapters.lora.fields import Fields
from lorry_adapters.lora.keys import PREFIX, check_shapes, sort_keys, unexpected
from lorry_adapters.lora.methods.own_parts import OwnPartsFields, read_own_parts, shape_of
from lorry_adapters.lora.methods.pairs import disagreements, not_linear
from lorry_adapters.lora.parts import Contents, Parts, SpecBase
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.replaced import OwnModule
from lorry_adapters.lora.targets import Targets, read_targets
from lorry_adapters.lora.tensor_file import TensorFile

_WEIGHT: Final = "ln_tuning_layers.weight"
_BIAS: Final = "ln_tuning_layers.bias"


@dataclass(frozen=True, slots=True)
class NormsSpec(SpecBase):
    """Made by `read_norms` only."""

    targets: Targets
    own: OwnPartsFields

    @property
    def scalable(self) -> bool:
        return False

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> Contents:
        keys = sort_keys(file, layout, (_WEIGHT, _BIAS), problems)
        own = read_own_parts(self.own, self.targets, file, layout, keys.rest, problems)
        problems.extend(unexpected(own.unknown, f"{PREFIX}<module>.{_WEIGHT}"))
        for name, mine in keys.modules.items():
            module = layout.modules[name]
            wanted = {
                mine[one]: shape_of(module, one.rpartition(".")[2])
                for one in (_WEIGHT, _BIAS)
                if one in mine
            }
            check_shapes(file, wanted, problems)
        if sound:
            try:
                problems.extend(
                    disagreements(
                        self.targets,
                        layout,
                        Budget(),
                        keys.modules,
                        kinds=tuple(ModuleKind),
                        refused=not_linear,
                    )
                )
            except InvalidAdapter as error:
                problems.extend(error.problems)

        def read() -> Parts:
            parts = Parts()
            for name, mine in keys.modules.items():
                weight = file.read(mine[_WEIGHT]) if _WEIGHT in mine else None
                bias = file.read(mine[_BIAS]) if _BIAS in mine else None
                transposed = layout.modules[name].kind is ModuleKind.CONV1D
                parts.add(name, OwnModule(weight, bias, transposed))
            own.read(parts)
            return parts

        return Contents(modules=(*keys.modules, *own.modules), read=read, labels=own.labels)


def read_norms(fields: Fields) -> NormsSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets = read_targets(fields)
    own = OwnPartsFields.read(fields)
    fields.refuse_the_rest(frozenset({"init_weights"}), {})
    return NormsSpec("LN_TUNING", base_model, task_type, targets, own)
