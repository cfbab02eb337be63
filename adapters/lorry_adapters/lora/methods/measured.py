"""PEFT's other methods that change linears, measured once with PEFT's own layers.

OFT, HRA, FourierFT, VB-LoRA and others each have their own formula, but all of them turn a
linear y = W x + b into another one, y = (W + D) x + b + e. So when the adapter is loaded, PEFT's
own layer is built around the base's weight and applied to every unit vector, and the resulting D
and e are served like any other delta. PEFT is not involved in a step.

D is as large as the weight that it changes, so its size is limited (`targeted.MAX_DENSE`). If
D has a low rank, two small matrices are kept instead (`low_rank`). A method whose output does
not have this form (checked with random inputs) is refused.

The config is untrusted, and PEFT builds layers from it. So it may contain only its own fields,
plain values, and no sizes that the file's tensors do not have.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout, BaseModule
from lorry_adapters.lora.config_fields import Fields, means_something
from lorry_adapters.lora.keys import LINEAR
from lorry_adapters.lora.methods.method import Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields, read_own_parts
from lorry_adapters.lora.methods.targeted import too_large
from lorry_adapters.lora.parts import FileContents, Parts, SpecBase
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.peft_probe import Measured, PeftProbe, Unbuildable
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.target_modules import Targets, read_targets
from lorry_adapters.lora.tensor_file import DTYPES, TensorFile

MAX_SIZE: Final = 1024
"""Integers in a config up to this are accepted; a larger one must be the size of a tensor."""

_TEXT: Final = re.compile(r"[A-Za-z0-9_.:-]{0,64}", re.ASCII)
_SEEDS: Final = ("seed", "key")
_REPLACED: Final = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode",
        "layers_pattern", "layers_to_transform", "modules_to_save", "peft_type", "peft_version",
        "revision", "runtime_config", "target_modules", "task_type",
    }
)  # fmt: skip
"""Fields that we set ourselves or that do not matter for a served layer."""


@dataclass(frozen=True, slots=True)
class MeasuredSpec(SpecBase):
    """Created by `read_measured` only."""

    targets: Targets
    own: OwnPartsFields
    values: Mapping[str, Any] = field(repr=False)

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> FileContents:
        modules: tuple[BaseModule, ...] = ()
        try:
            modules = self.targets.select(layout, Budget())
        except InvalidAdapter as error:
            problems.extend(error.problems)
        before = len(problems)
        self._check_modules(modules, layout, problems)
        self._check_sizes(file, problems)
        for key, entry in file.entries.items():
            if entry.dtype not in DTYPES:
                problems.append(
                    f"{shown(key)} is {entry.dtype}; adapters are served in {', '.join(DTYPES)}"
                )
        names = tuple(module.name for module in modules)
        own_keys = [key for key in file.entries if self._is_own(key, layout)]
        own = read_own_parts(self.own, None, file, layout, own_keys, problems)
        taken = set(own_keys) - set(own.unknown)
        probes: list[PeftProbe] = []
        if sound and len(problems) == before:
            try:
                tensors = {key: file.read(key) for key in file.entries if key not in taken}
                probes.append(PeftProbe(self.peft_type, self.values, modules, tensors))
                probes[0].try_out(modules)
            except Unbuildable as error:
                problems.append(str(error))

        def read() -> Parts:
            parts = Parts()
            for module in modules:
                parts.add(module.name, Measured(probes[0], module.name))
            own.read(parts)
            return parts

        return FileContents(modules=(*names, *own.modules), read=read, labels=own.labels)

    def _is_own(self, key: str, layout: BaseLayout) -> bool:
        path = key.rpartition(".")[0].removeprefix("base_model.model.")
        return path in layout.modules and self.own.saves(path)

    def _check_modules(
        self, modules: Sequence[BaseModule], layout: BaseLayout, problems: list[str]
    ) -> None:
        if not modules:
            problems.append(f"the config matches no module of the base {layout.name}")
        other = [module.name for module in modules if module.kind not in LINEAR]
        if other:
            problems.append(
                f"{self.peft_type} is served on linear modules only, but the config targets "
                f"{some(other)}"
            )
        problems.extend(too_large(self.peft_type, modules))

    def _check_sizes(self, file: TensorFile, problems: list[str]) -> None:
        # A side of an empty tensor may have any size at no cost to the file.
        sides = (max(e.shape, default=1) for e in file.entries.values() if e.elements)
        largest = max(sides, default=1)
        for key, value in self.values.items():
            seed = any(word in key for word in _SEEDS)
            if isinstance(value, int) and abs(value) > max(MAX_SIZE, largest) and not seed:
                problems.append(f"{key} is {shown(value)}, but no tensor in the file is that large")


def read_measured(fields: Fields, name: str) -> MeasuredSpec:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    base_model, task_type = fields.base_model(), fields.task_type()
    targets = read_targets(fields)
    own = OwnPartsFields.read(fields)
    values = {}
    for one in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[name]):
        if one.name in _REPLACED or one.name in ("bias", "ensure_weight_tying"):
            continue
        value = fields.raw(one.name)
        if value is None:
            continue
        if not _is_plain(value):
            fields.problems.append(f"{one.name} is {shown(value)}: this value is not served")
        else:
            values[one.name] = value
    fields.refuse_the_rest(frozenset(), {})
    return MeasuredSpec(name, base_model, task_type, targets, own, values)


def _is_plain(value: Any) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) < 1 << 63
    if isinstance(value, str):
        return _TEXT.fullmatch(value) is not None
    if isinstance(value, list):
        return len(value) <= MAX_SIZE and all(map(_is_plain, value))
    if isinstance(value, dict):
        return not means_something(value) or (
            len(value) <= MAX_SIZE
            and all(isinstance(k, str) and _TEXT.fullmatch(k) for k in value)
            and all(map(_is_plain, value.values()))
        )
    return value is None


METHODS: Final = tuple(
    Method(name, title, read_measured, (f"{name.lower()}_",), full_weights=True)
    for name, title in (
        ("BOFT", "BOFT"),
        ("C3A", "C3A"),
        ("DEFT", "DEFT"),
        ("DELORA", "DeLoRA"),
        ("FOURIERFT", "FourierFT"),
        ("GLORA", "GLoRA"),
        ("GRALORA", "GraLoRA"),
        ("HIRA", "HiRA"),
        ("HRA", "HRA"),
        ("MISS", "MiSS"),
        ("OFT", "OFT"),
        ("PEANUT", "PEANuT"),
        ("PVERA", "PVeRA"),
        ("RANDLORA", "RandLoRA"),
        ("ROAD", "RoAd"),
        ("TINYLORA", "TinyLoRA"),
        ("UNILORA", "UniLoRA"),
        ("VBLORA", "VB-LoRA"),
        ("WAVEFT", "WaveFT"),
    )
)
