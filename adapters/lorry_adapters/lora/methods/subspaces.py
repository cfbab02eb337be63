"""OSF and PSOFT: training in subspaces of a weight's singular vectors.

    <linear>.osf_svd_params.U_low [out, l], S_low [l], V_low [l, in]      replace the l smallest
    <linear>.psoft_R.weight     [r (r - 1) / 2], above the diagonal of a skew matrix; or [r, r]
    <linear>.psoft_R.vector_a [r], vector_b [r]     factors of R's columns and rows

PSOFT depends on the signs that the decomposition gave to the base's singular vectors. Those of
a rounded weight may differ, so PSOFT is refused on quantized bases, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from lorry_adapters.errors import Problem, Remedy
from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.config_fields import Fields, Wrong
from lorry_adapters.lora.keys import check_shapes
from lorry_adapters.lora.methods.method import Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields
from lorry_adapters.lora.methods.targeted import FoundModule, TargetedSpec, too_large
from lorry_adapters.lora.parts import FileContents, Parts
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.spectral import NewTail, Turned
from lorry_adapters.lora.target_modules import read_targets
from lorry_adapters.lora.tensor_file import TensorFile

_MAX_TERMS: Final = 64
"""The most terms of a series and passes of an iteration; PEFT's defaults are 5 and 10."""
_OSF_TRAINING: Final = frozenset(
    # How many singular values were trained; the file's shapes show it.
    {"effective_rank", "init_weights", "rank_pattern", "target_svd_config"}
)


@dataclass(frozen=True, slots=True)
class OsfSpec(TargetedSpec):
    """Created by `read_osf` only."""

    parameters: ClassVar = (
        "osf_svd_params.U_low",
        "osf_svd_params.S_low",
        "osf_svd_params.V_low",
    )

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        module, (u, s, v) = found.module, (found.keys[one] for one in self.parameters)
        count = file.entries[s].elements
        wanted: dict[str, tuple[int, ...]] = {
            u: (module.out_features, count),
            s: (count,),
            v: (count, module.in_features),
        }
        check_shapes(file, wanted, problems)
        if count > min(module.out_features, module.in_features):
            problems.append(f"{shown(s)} has {count} singular values, more than the weight")
        return 0

    def check_shared(
        self,
        file: TensorFile,
        found: Sequence[FoundModule],
        shared: Sequence[str],
        problems: list[str],
    ) -> None:
        problems.extend(too_large(self.peft_type, (one.module for one in found)))

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        for one in found:
            u, s, v = (file.read(one.keys[parameter]) for parameter in self.parameters)
            parts.add(one.module.name, NewTail(u, s, v))


@dataclass(frozen=True, slots=True)
class PsoftSpec(TargetedSpec):
    """Created by `read_psoft` only."""

    r: int
    skew: bool
    terms: int | None
    """The terms of Neumann's series; None for Cayley's exact transform."""
    longest: float | None
    """The norm to which the skew matrix is clipped before the series."""
    vectors: tuple[str, ...]
    halved: bool
    passes: int | None
    seed: int
    parameters: ClassVar = ("psoft_R.weight",)
    optional: ClassVar = ("psoft_R.vector_a", "psoft_R.vector_b")

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> FileContents:
        if not layout.exact:
            problems.append(
                Problem(
                    "PSOFT rotates the singular vectors of the base's own weights, and those of a "
                    "quantized base differ: serve the base unquantized, or convert the adapter to "
                    "a LoRA with peft's convert_to_lora",
                    Remedy.UNQUANTIZED_BASE,
                )
            )
        # Named explicitly: a dataclass with slots is not the class that `super()` refers to.
        return TargetedSpec.contents(self, file, layout, problems, sound=sound)

    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        module, r = found.module, self.r
        wanted: dict[str, tuple[int, ...]] = {
            found.keys["psoft_R.weight"]: (r * (r - 1) // 2,) if self.skew else (r, r)
        }
        for one in self.optional:
            if (one in found.keys) != (one in self.vectors):
                there = "has" if one in found.keys else "lacks"
                problems.append(f"{shown(module.name)} {there} {one}, against its config")
            elif one in found.keys:
                wanted[found.keys[one]] = (r,)
        check_shapes(file, wanted, problems)
        if r > min(module.in_features, module.out_features):
            problems.append(f"r is {r}, more than the singular values of {shown(module.name)}")
        return 0

    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        for one in found:
            turn_RR = self._turn(file.read(one.keys["psoft_R.weight"]).float())
            if "psoft_R.vector_b" in one.keys:
                turn_RR = file.read(one.keys["psoft_R.vector_b"]).float()[:, None] * turn_RR
            if "psoft_R.vector_a" in one.keys:
                turn_RR = turn_RR * file.read(one.keys["psoft_R.vector_a"]).float()
            turned = Turned(turn_RR - torch.eye(self.r), self.halved, self.passes, self.seed)
            parts.add(one.module.name, turned)

    def _turn(self, weight: Tensor) -> Tensor:
        """Return R = (1 + Q) (1 - Q)^-1, or its series 1 + 2 Q + 2 Q^2 + ... + Q^terms; R itself if
        it need not be orthogonal."""
        if not self.skew:
            return weight
        one_RR = torch.eye(self.r)
        q_RR = torch.zeros(self.r, self.r)
        q_RR[*torch.triu_indices(self.r, self.r, 1)] = weight
        q_RR = q_RR - q_RR.T
        if self.terms is None:
            turn_RR: Tensor = torch.linalg.solve(one_RR - q_RR, one_RR + q_RR, left=False)
            return turn_RR
        length = float(q_RR.norm())
        if self.longest is not None and length > self.longest:
            q_RR = q_RR * (self.longest / (length + 1e-12))
        if self.terms < 3:
            return one_RR + 2 * q_RR if self.terms == 2 else one_RR
        power_RR = q_RR @ q_RR
        turn_RR = one_RR + 2 * q_RR + 2 * power_RR
        for _ in range(3, self.terms - 1):
            power_RR = power_RR @ q_RR
            turn_RR = turn_RR + 2 * power_RR
        return turn_RR + power_RR @ q_RR


def read_osf(fields: Fields, name: str) -> OsfSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets, own = read_targets(fields), OwnPartsFields.read(fields)
    fields.refuse_the_rest(_OSF_TRAINING, {})
    return OsfSpec(name, base_model, task_type, targets, own)


def read_psoft(fields: Fields, name: str) -> PsoftSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    targets, own = read_targets(fields), OwnPartsFields.read(fields)
    r = fields.take("r", check.rank, 32)
    # A and B contain it as a divisor, and the sum as a factor.
    if fields.take("psoft_alpha", check.alpha, 32.0) <= 0:
        fields.problems.append("psoft_alpha must be above 0")
    series = fields.take("use_cayley_neumann", check.boolean, False)
    terms = fields.take("num_cayley_neumann_terms", _count, 5)
    longest = fields.take("cayley_neumann_eps", check.alpha, None)
    directions = fields.take("psoft_svd", _one_of("full", "lowrank"), "full") == "lowrank"
    passes = fields.take("psoft_svd_lowrank_niter", _count, 10)
    spec = PsoftSpec(
        name,
        base_model,
        task_type,
        targets,
        own,
        r=r,
        skew=fields.take("psoft_orth", check.boolean, True),
        terms=terms if series else None,
        longest=longest,
        vectors=tuple(
            f"psoft_R.vector_{one}"
            for one in "ab"
            if fields.take(f"psoft_mag_{one}", check.boolean, True)
        ),
        halved=fields.take("ab_svd_init", _one_of("psoft_init", "pissa_init"), "psoft_init")
        == "pissa_init",
        passes=passes if directions else None,
        seed=fields.take("random_seed", check.seed, 0),
    )
    fields.refuse_the_rest(frozenset({"fan_in_fan_out", "init_weights", "psoft_dropout"}), {})
    return spec


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_TERMS:
        raise Wrong(f"must be a whole number up to {_MAX_TERMS}")
    return value


def _one_of(*names: str) -> Any:
    def checked(value: Any) -> str:
        if value not in names:
            raise Wrong(f"must be one of {', '.join(names)}")
        return str(value)

    return checked


METHODS: Final = (
    Method("OSF", "OSF", read_osf, ("osf_",), full_weights=True),
    Method("PSOFT", "PSOFT", read_psoft, ("psoft_",)),
)
