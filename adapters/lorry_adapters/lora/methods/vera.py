"""VeRA: one pair of random matrices for all linears, and two trained vectors for each.

    base_model.vera_A       [r, widest input]       drawn from projection_prng_key if the
    base_model.vera_B       [widest output, r]      file lacks them (save_projection false)
    <linear>.vera_lambda_d  [r]
    <linear>.vera_lambda_b  [out]

y += b * (B (d * (A x))), A and B cut to the linear's own widths: arXiv:2310.11454, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.effects import Projections, Vera
from lorry_adapters.lora.keys import check_shapes
from lorry_adapters.lora.methods.method import Gate, Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields
from lorry_adapters.lora.methods.targeted import FoundModule, TargetedSpec
from lorry_adapters.lora.parts import Parts
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.target_modules import read_targets
from lorry_adapters.lora.tensor_file import DTYPES, TensorFile

_A: Final = "base_model.vera_A"
_B: Final = "base_model.vera_B"


@dataclass(frozen=True, slots=True)
class VeraSpec(TargetedSpec):
    """Created by `read_vera` only."""

    r: int
    seed: int
    saved: bool
    parameters: ClassVar = ("vera_lambda_b", "vera_lambda_d")

    def claims(self, key: str) -> bool:
        return key in (_A, _B)

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        b_key, d_key = (found.keys[one] for one in self.parameters)
        check_shapes(file, {b_key: (found.module.out_features,), d_key: (self.r,)}, problems)
        return 0

    def check_shared(
        self,
        file: TensorFile,
        found: Sequence[FoundModule],
        shared: Sequence[str],
        problems: list[str],
    ) -> None:
        if self.saved and len(shared) < 2:
            problems.append("save_projection is true, but the file has no vera_A and vera_B")
        elif self.saved:
            inputs, outputs = _widest(found)
            check_shapes(file, {_A: (self.r, inputs), _B: (outputs, self.r)}, problems)
            for key in shared:
                if file.entries[key].dtype not in DTYPES:
                    problems.append(f"{shown(key)} is {file.entries[key].dtype}")

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        if self.saved:
            a_RI, b_OR = file.read(_A), file.read(_B)
        else:
            a_RI, b_OR = _drawn(self.seed, self.r, *_widest(found))
        projections = Projections(a_RI, b_OR)
        for one in found:
            b_O, d_R = (file.read(one.keys[parameter]) for parameter in self.parameters)
            parts.add(one.module.name, Vera(projections, d_R, b_O))


def _widest(found: Sequence[FoundModule]) -> tuple[int, int]:
    """Return (inputs, outputs) of the widest linears: the projections serve all linears."""
    inputs = max((one.module.in_features for one in found), default=0)
    return inputs, max((one.module.out_features for one in found), default=0)


def read_vera(fields: Fields, name: str) -> VeraSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets = read_targets(fields)
    r = fields.take("r", check.rank, 256)
    seed = fields.take("projection_prng_key", check.seed, 0)
    saved = fields.take("save_projection", check.boolean, True)
    own = OwnPartsFields.read(fields)
    harmless = {"d_initial", "fan_in_fan_out", "init_weights", "vera_dropout"}
    fields.refuse_the_rest(frozenset(harmless), {})
    return VeraSpec(name, base_model, task_type, targets, own, r, seed, saved)


def _drawn(seed: int, r: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Draw as PEFT does: uniform, within sqrt(6 / columns) (He et al., arXiv:1502.01852)."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(rows: int, columns: int) -> Tensor:
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(columns))
        return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

    return draw(r, inputs), draw(outputs, r)


METHODS: Final = (Method("VERA", "VeRA", read_vera, ("vera_",), Gate("vera_lambda_b")),)
