"""VeRA: one pair of random matrices for all linears, and two trained vectors for each.

    base_model.vera_A       [r, widest input]       drawn from projection_prng_key where the
    base_model.vera_B       [widest output, r]      file has none (save_projection false)
    <linear>.vera_lambda_d  [r]
    <linear>.vera_lambda_b  [out]

y += b * (B (d * (A x))), A and B cut to the linear's own widths: arXiv:2310.11454, section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import fields as check
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.effects import Projections, Vera
from lorry_adapters.lora.fields import Fields, Wrong
from lorry_adapters.lora.keys import LINEAR, PREFIX, check_shapes, sort_keys, unexpected
from lorry_adapters.lora.methods.own_parts import OwnPartsFields, read_own_parts
from lorry_adapters.lora.methods.pairs import disagreements, not_linear
from lorry_adapters.lora.parts import Contents, Parts, SpecBase
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.targets import Targets, read_targets
from lorry_adapters.lora.tensor_file import DTYPES, TensorFile

_PARAMETERS: Final = ("vera_lambda_b", "vera_lambda_d")
_SHARED: Final = {"base_model.vera_A": "A", "base_model.vera_B": "B"}


@dataclass(frozen=True, slots=True)
class VeraSpec(SpecBase):
    """Made by `read_vera` only."""

    targets: Targets
    own: OwnPartsFields
    r: int
    seed: int
    saved: bool

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> Contents:
        keys = sort_keys(file, layout, _PARAMETERS, problems)
        shared = {_SHARED[key]: key for key in keys.rest if key in _SHARED}
        rest = [key for key in keys.rest if key not in _SHARED]
        own = read_own_parts(self.own, self.targets, file, layout, rest, problems)
        problems.extend(unexpected(own.unknown, f"{PREFIX}<module>.vera_lambda_b or _d"))
        shapes: dict[str, tuple[int, ...]] = {}
        widest_in = widest_out = 0
        for name, mine in keys.modules.items():
            module = layout.modules[name]
            missing = [one for one in _PARAMETERS if one not in mine]
            if module.kind not in LINEAR:
                problems.append(not_linear(module))
            elif missing:
                problems.append(f"{shown(name)} has no {' and no '.join(missing)}")
            else:
                shapes[mine["vera_lambda_b"]] = (module.out_features,)
                shapes[mine["vera_lambda_d"]] = (self.r,)
                widest_in = max(widest_in, module.in_features)
                widest_out = max(widest_out, module.out_features)
        if self.saved and len(shared) < 2:
            problems.append("save_projection is true, and the file has no vera_A and vera_B")
        if self.saved and len(shared) == 2:
            shapes[shared["A"]] = (self.r, widest_in)
            shapes[shared["B"]] = (widest_out, self.r)
            for key in shared.values():
                if file.entries[key].dtype not in DTYPES:
                    problems.append(f"{shown(key)} is {file.entries[key].dtype}")
        check_shapes(file, shapes, problems)
        if sound:
            try:
                found = keys.modules
                problems.extend(
                    disagreements(self.targets, layout, Budget(), found, refused=not_linear)
                )
            except InvalidAdapter as error:
                problems.extend(error.problems)

        def read() -> Parts:
            parts = Parts()
            if self.saved:
                a_RI, b_OR = file.read(shared["A"]), file.read(shared["B"])
            else:
                a_RI, b_OR = _drawn(self.seed, self.r, widest_in, widest_out)
            projections = Projections(a_RI, b_OR)
            for name, mine in keys.modules.items():
                d_R, b_O = file.read(mine["vera_lambda_d"]), file.read(mine["vera_lambda_b"])
                parts.add(name, Vera(projections, d_R, b_O))
            own.read(parts)
            return parts

        return Contents(modules=(*keys.modules, *own.modules), read=read, labels=own.labels)


def read_vera(fields: Fields) -> VeraSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets = read_targets(fields)
    r = fields.take("r", check.rank, 256)
    seed = fields.take("projection_prng_key", _seed, 0)
    saved = fields.take("save_projection", check.boolean, True)
    own = OwnPartsFields.read(fields)
    harmless = {"d_initial", "fan_in_fan_out", "init_weights", "vera_dropout"}
    fields.refuse_the_rest(frozenset(harmless), {})
    return VeraSpec("VERA", base_model, task_type, targets, own, r, seed, saved)


def _seed(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise Wrong("must be a whole number")
    return value


def _drawn(seed: int, r: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """As PEFT draws them: uniform, within sqrt(6 / columns) (He et al., arXiv:1502.01852)."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(rows: int, columns: int) -> Tensor:
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(columns))
        return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

    return draw(r, inputs), draw(outputs, r)
