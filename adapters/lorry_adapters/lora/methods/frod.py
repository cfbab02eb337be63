"""FRoD: a linear's weight in a basis that all linears of one role share, with a new diagonal and
a few elements beside it.

    base_model.frod_V.<role>            [in, in]    the basis
    base_model.frod_s_indices.<role>    [2, n]      (row, column) of the elements off the diagonal
    base_model.frod_s_size.<role>       [2]         in and in
    <linear>.frod_lambda_l              [in]        the diagonal
    <linear>.frod_lambda_s_values       [n]

A role is the end of a linear's path: `self_attn_q_proj`. A file without the basis
(save_projection false) is refused: PEFT computes it again by decompositions whose signs differ
between machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.keys import check_shapes
from lorry_adapters.lora.methods.method import Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields
from lorry_adapters.lora.methods.targeted import FoundModule, TargetedSpec, too_large
from lorry_adapters.lora.parts import Parts
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.spectral import Basis, InBasis
from lorry_adapters.lora.target_modules import read_targets
from lorry_adapters.lora.tensor_file import DTYPES, PLACES, TensorFile

_V: Final = "base_model.frod_V."
_PLACES: Final = "base_model.frod_s_indices."
_SIZE: Final = "base_model.frod_s_size."
_TRAINING: Final = frozenset(
    {
        "fan_in_fan_out", "frod_dropout", "init_weights", "progressbar", "projection_prng_key",
        "regularization_alpha", "runtime_offload_base_weight", "sparse_rate",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FrodSpec(TargetedSpec):
    """Created by `read_frod` only."""

    parameters: ClassVar = ("frod_lambda_l", "frod_lambda_s_values")

    def claims(self, key: str) -> bool:
        return key.startswith((_V, _PLACES, _SIZE))

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        lengths, values = (found.keys[one] for one in self.parameters)
        inputs, role = found.module.in_features, role_of(found.module.name)
        missing = [
            f"{start}{role}"
            for start in (_V, _PLACES, _SIZE)
            if f"{start}{role}" not in file.entries
        ]
        if missing:
            problems.append(f"{shown(found.module.name)} needs {' and '.join(missing)} in the file")
            return 0
        count = file.entries[values].elements
        wanted: dict[str, tuple[int, ...]] = {
            lengths: (inputs,),
            values: (count,),
            f"{_V}{role}": (inputs, inputs),
            f"{_PLACES}{role}": (2, count),
            f"{_SIZE}{role}": (2,),
        }
        check_shapes(file, wanted, problems)
        return 0

    def check_shared(
        self,
        file: TensorFile,
        found: Sequence[FoundModule],
        shared: Sequence[str],
        problems: list[str],
    ) -> None:
        problems.extend(too_large(self.peft_type, (one.module for one in found)))
        inputs = {role_of(one.module.name): one.module.in_features for one in found}
        for key in shared:
            role = key.split(".", 2)[2]
            allowed = DTYPES if key.startswith(_V) else PLACES
            if file.entries[key].dtype not in allowed:
                problems.append(
                    f"{shown(key)} is {file.entries[key].dtype}; the dtype must be one of "
                    f"{', '.join(allowed)}"
                )
            elif role not in inputs:
                problems.append(f"{shown(key)} belongs to no linear in the file")
            elif key.startswith(_PLACES):
                file.read_places(key, inputs[role])
            elif key.startswith(_SIZE) and not self._is_size(file, key, inputs[role]):
                problems.append(f"{shown(key)} must be {[inputs[role], inputs[role]]}")

    def _is_size(self, file: TensorFile, key: str, inputs: int) -> bool:
        # Checked before reading: as a list, a large tensor would take ten times its memory.
        if file.entries[key].shape != (2,):
            return False
        return file.read_places(key, inputs + 1).tolist() == [inputs, inputs]

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        bases: dict[str, Basis] = {}
        for one in found:
            role, inputs = role_of(one.module.name), one.module.in_features
            if role not in bases:
                rows_N, columns_N = file.read_places(f"{_PLACES}{role}", inputs).int()
                bases[role] = Basis(file.read(f"{_V}{role}"), rows_N, columns_N)
            lengths_I, values_N = (file.read(one.keys[key]) for key in self.parameters)
            parts.add(one.module.name, InBasis(bases[role], lengths_I, values_N))


def role_of(module: str) -> str:
    """Return PEFT's name of a role: the last parts of the path."""
    parts = module.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    if parts[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return f"{parts[-2]}_{parts[-1]}"


def read_frod(fields: Fields, name: str) -> FrodSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets, own = read_targets(fields), OwnPartsFields.read(fields)
    if not fields.take("save_projection", check.boolean, True):
        fields.problems.append(
            "save_projection is false, so the file lacks the basis that the trained numbers "
            "belong to; save it again with save_projection=True"
        )
    fields.refuse_the_rest(_TRAINING, {})
    return FrodSpec(name, base_model, task_type, targets, own)


METHODS: Final = (Method("FROD", "FRoD", read_frod, ("frod_",), full_weights=True),)
