"""(IA)3: each targeted linear's input or output is multiplied by a trained vector.

<linear>.ia3_l      [out, 1], or [1, in] for a linear of feedforward_modules
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.effects import InputGain, OutputGain
from lorry_adapters.lora.keys import check_shapes
from lorry_adapters.lora.methods.method import Gate, Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields
from lorry_adapters.lora.methods.targeted import FoundModule, TargetedSpec
from lorry_adapters.lora.parts import Parts
from lorry_adapters.lora.patterns import Budget, Pattern
from lorry_adapters.lora.target_modules import read_targets
from lorry_adapters.lora.tensor_file import TensorFile

_KEY: Final = "ia3_l"


@dataclass(frozen=True, slots=True)
class Ia3Spec(TargetedSpec):
    """Created by `read_ia3` only."""

    _feedforward: Pattern | tuple[str, ...] = field(repr=False)
    parameters: ClassVar = (_KEY,)

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        module, key = found.module, found.keys[_KEY]
        on_input = self._on_input(module.name, budget)
        shape = (1, module.in_features) if on_input else (module.out_features, 1)
        check_shapes(file, {key: shape}, problems)
        return 0

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        budget = Budget()
        for one in found:
            gain, name = file.read(one.keys[_KEY]).flatten(), one.module.name
            on_input = self._on_input(name, budget)
            parts.add(name, InputGain(gain) if on_input else OutputGain(gain))

    def _on_input(self, module: str, budget: Budget) -> bool:
        if isinstance(self._feedforward, Pattern):
            return self._feedforward.matches(module, budget)
        return any(module.endswith(name) for name in self._feedforward)


def read_ia3(fields: Fields, name: str) -> Ia3Spec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets = read_targets(fields)
    given = fields.take("feedforward_modules", check.names, ())
    feedforward: Pattern | tuple[str, ...] = ()
    if isinstance(given, str):
        try:
            feedforward = Pattern(given, where="feedforward_modules")
        except InvalidAdapter as error:
            fields.problems.extend(error.problems)
    else:
        feedforward = given
    own = OwnPartsFields.read(fields)
    fields.refuse_the_rest(frozenset({"fan_in_fan_out", "init_ia3_weights"}), {})
    return Ia3Spec(name, base_model, task_type, targets, own, feedforward)


METHODS: Final = (Method("IA3", "(IA)3", read_ia3, ("ia3_",), Gate(_KEY, idle=1.0)),)
