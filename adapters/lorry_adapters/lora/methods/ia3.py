"""(IA)3: each targeted linear's input or answer times a trained vector.

<linear>.ia3_l      [out, 1], or [1, in] for those among feedforward_modules
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import fields as check
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.effects import InputGain, OutputGain
from lorry_adapters.lora.fields import Fields
from lorry_adapters.lora.keys import LINEAR, PREFIX, check_shapes, sort_keys, unexpected
from lorry_adapters.lora.methods.own_parts import OwnPartsFields, read_own_parts
from lorry_adapters.lora.methods.pairs import disagreements, not_linear
from lorry_adapters.lora.parts import Contents, Parts, SpecBase
from lorry_adapters.lora.patterns import Budget, Pattern
from lorry_adapters.lora.targets import Targets, read_targets
from lorry_adapters.lora.tensor_file import TensorFile

_KEY: Final = "ia3_l"


@dataclass(frozen=True, slots=True)
class Ia3Spec(SpecBase):
    """Made by `read_ia3` only."""

    targets: Targets
    own: OwnPartsFields
    _feedforward: Pattern | tuple[str, ...] = field(repr=False)

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> Contents:
        keys = sort_keys(file, layout, (_KEY,), problems)
        own = read_own_parts(self.own, self.targets, file, layout, keys.rest, problems)
        problems.extend(unexpected(own.unknown, f"{PREFIX}<module>.{_KEY}"))
        found = keys.of(_KEY)
        budget = Budget()
        feedforward: dict[str, bool] = {}
        try:
            feedforward = {name: self._on_input(name, budget) for name in found}
            if sound:
                problems.extend(
                    disagreements(self.targets, layout, budget, found, refused=not_linear)
                )
        except InvalidAdapter as error:
            problems.extend(error.problems)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, key in found.items():
            module = layout.modules[name]
            if module.kind not in LINEAR:
                problems.append(not_linear(module))
            elif feedforward.get(name):
                shapes[key] = (1, module.in_features)
            else:
                shapes[key] = (module.out_features, 1)
        check_shapes(file, shapes, problems)

        def read() -> Parts:
            parts = Parts()
            for name, key in found.items():
                gain = file.read(key).flatten()
                parts.add(name, InputGain(gain) if feedforward[name] else OutputGain(gain))
            own.read(parts)
            return parts

        return Contents(modules=(*found, *own.modules), read=read, labels=own.labels)

    def _on_input(self, module: str, budget: Budget) -> bool:
        if isinstance(self._feedforward, Pattern):
            return self._feedforward.matches(module, budget)
        return any(module.endswith(name) for name in self._feedforward)


def read_ia3(fields: Fields) -> Ia3Spec:
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
    return Ia3Spec("IA3", base_model, task_type, targets, own, feedforward)
