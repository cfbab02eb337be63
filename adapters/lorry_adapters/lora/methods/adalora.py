"""AdaLoRA: a LoRA with singular values between its matrices, of a rank that training chose.

    <linear>.lora_A     [r, in]
    <linear>.lora_E     [r, 1]
    <linear>.lora_B     [out, r]

y += alpha / (init_r + 1e-5) B (E A x), whatever is left of the rank: so PEFT scales it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import fields as check
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.fields import Fields
from lorry_adapters.lora.keys import LINEAR, PREFIX, check_shapes, sort_keys, unexpected
from lorry_adapters.lora.methods.own_parts import OwnPartsFields, read_own_parts
from lorry_adapters.lora.methods.pairs import disagreements, not_linear
from lorry_adapters.lora.parts import Contents, LoraPair, Parts, SpecBase
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.targets import Targets, read_targets
from lorry_adapters.lora.tensor_file import TensorFile

_PARAMETERS: Final = ("lora_A", "lora_B", "lora_E")
_DEFAULT_RANK: Final = 12
"""PEFT's own, of init_r."""

_TRAINING: Final = frozenset(
    {
        "beta1", "beta2", "deltaT", "fan_in_fan_out", "init_lora_weights", "lora_dropout",
        "megatron_core", "orth_reg_weight", "qalora_group_size", "r", "target_r", "tfinal",
        "tinit", "total_step",
        # Which singular values were kept; the file has no others.
        "rank_pattern",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AdaLoraSpec(SpecBase):
    """Made by `read_adalora` only."""

    targets: Targets
    own: OwnPartsFields
    scaling: float

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> Contents:
        keys = sort_keys(file, layout, _PARAMETERS, problems)
        own = read_own_parts(self.own, self.targets, file, layout, keys.rest, problems)
        problems.extend(unexpected(own.unknown, f"{PREFIX}<module>.lora_A, .lora_B or .lora_E"))
        ranks = {}
        for name, mine in keys.modules.items():
            module = layout.modules[name]
            missing = [one for one in _PARAMETERS if one not in mine]
            if module.kind not in LINEAR:
                problems.append(not_linear(module))
            elif missing:
                problems.append(f"{shown(name)} has no {' and no '.join(missing)}")
            else:
                shape = file.entries[mine["lora_A"]].shape
                rank = ranks[name] = shape[0] if shape else 0
                wanted = {
                    mine["lora_A"]: (rank, module.in_features),
                    mine["lora_E"]: (rank, 1),
                    mine["lora_B"]: (module.out_features, rank),
                }
                check_shapes(file, wanted, problems)
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
            for name, rank in ranks.items():
                if rank == 0:  # pruned away
                    continue
                mine = keys.modules[name]
                e_R1 = file.read(mine["lora_E"])
                a_RI, b_OR = file.read(mine["lora_A"]) * e_R1, file.read(mine["lora_B"])
                parts.pairs[name] = LoraPair(a_RI, b_OR, self.scaling)
            own.read(parts)
            return parts

        return Contents(
            modules=(*keys.modules, *own.modules), read=read, ranks=ranks, labels=own.labels
        )


def read_adalora(fields: Fields) -> AdaLoraSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets = read_targets(fields)
    rank = fields.take("init_r", check.rank, _DEFAULT_RANK)
    alpha = fields.take("lora_alpha", check.alpha, 8.0, required=True)
    own = OwnPartsFields.read(fields)
    fields.refuse_the_rest(_TRAINING, {"use_dora": "DoRA of AdaLoRA"})
    scaling = (alpha if alpha > 0 else float(rank)) / (rank + 1e-5)
    return AdaLoraSpec("ADALORA", base_model, task_type, targets, own, scaling)
