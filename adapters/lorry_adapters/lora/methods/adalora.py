"""AdaLoRA: a LoRA with singular values between its matrices, whose ranks training chose.

    <linear>.lora_A     [r, in]
    <linear>.lora_E     [r, 1]
    <linear>.lora_B     [out, r]

PEFT's formula: y += alpha / (init_r + 1e-5) B (E A x), whatever rank is left after pruning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.keys import check_shapes
from lorry_adapters.lora.methods.method import Gate, Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields
from lorry_adapters.lora.methods.targeted import FoundModule, TargetedSpec
from lorry_adapters.lora.parts import LoraPair, Parts
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.target_modules import read_targets
from lorry_adapters.lora.tensor_file import TensorFile

_DEFAULT_RANK: Final = 12
"""PEFT's default of init_r."""

_TRAINING: Final = frozenset(
    {
        "beta1", "beta2", "deltaT", "fan_in_fan_out", "init_lora_weights", "lora_dropout",
        "megatron_core", "orth_reg_weight", "qalora_group_size", "r", "target_r", "tfinal",
        "tinit", "total_step",
        # The kept singular values; the file contains no others.
        "rank_pattern",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AdaLoraSpec(TargetedSpec):
    """Created by `read_adalora` only."""

    scaling: float
    parameters: ClassVar = ("lora_A", "lora_B", "lora_E")

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        a_key, b_key, e_key = (found.keys[one] for one in self.parameters)
        rank = _rank(file, a_key)
        wanted = {
            a_key: (rank, found.module.in_features),
            e_key: (rank, 1),
            b_key: (found.module.out_features, rank),
        }
        check_shapes(file, wanted, problems)
        return rank

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        for one in found:
            a_key, b_key, e_key = (one.keys[parameter] for parameter in self.parameters)
            if _rank(file, a_key):  # otherwise all of it was pruned
                a_RI = file.read(a_key) * file.read(e_key)
                parts.pairs[one.module.name] = LoraPair(a_RI, file.read(b_key), self.scaling)


def _rank(file: TensorFile, a_key: str) -> int:
    shape = file.entries[a_key].shape
    return shape[0] if shape else 0


def read_adalora(fields: Fields, name: str) -> AdaLoraSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets = read_targets(fields)
    rank = fields.take("init_r", check.rank, _DEFAULT_RANK)
    alpha = fields.take("lora_alpha", check.alpha, 8.0, required=True)
    own = OwnPartsFields.read(fields)
    fields.refuse_the_rest(_TRAINING, {"use_dora": "DoRA of AdaLoRA"})
    scaling = (alpha if alpha > 0 else float(rank)) / (rank + 1e-5)
    return AdaLoraSpec(name, base_model, task_type, targets, own, scaling)


METHODS: Final = (Method("ADALORA", "AdaLoRA", read_adalora, ("lora_",), Gate("lora_E")),)
