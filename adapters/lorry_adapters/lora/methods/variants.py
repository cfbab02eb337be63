"""LoRA variants that PEFT stores in a LoRA config, and their effect on a module's pair.

kasa_config     <linear>.lora_diag [r] stands between the two matrices, and the base loses the
                r smallest singular values of its weight: arXiv:2412.06071
use_bdlora      A [r, in / blocks] or B [out, r / blocks]: the blocks of a block-diagonal matrix,
                stacked in the file; parts of paths select the modules
use_qalora      A [r, in / group] reads the sums of groups of inputs, times in / group^2. If A has
                a column for every input, as beside linears that are not GPTQ's, a plain pair
velora_config, monteclora_config    a plain pair; the file's other tensors served the training
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.base import BaseModule
from lorry_adapters.lora.config_fields import Fields, Wrong
from lorry_adapters.lora.keys import Keys, check_shapes
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.spectral import WithoutTail
from lorry_adapters.lora.tensor_file import TensorFile

_DIAGONAL: Final = "lora_diag"
_TRAINING: Final = {
    "kasa_config": frozenset({"beta", "gamma"}),
    "velora_config": frozenset({"init_type", "num_groups", "scale"}),
    "monteclora_config": frozenset(
        {
            "buffer_size", "dirichlet_prior", "kl_loss_weight", "num_samples", "sample_scaler",
            "use_entropy",
        }
    ),
}  # fmt: skip
"""Their fields, all of which matter for training only."""
_LEFT: Final = {
    "velora_config": ("lora_velora_embed",),
    "monteclora_config": tuple(
        f"lora_monteclora_sampler.{one}"
        for one in ("expert_weights", "expert_weights_prior", "gaussian_var_prior", "std_prior")
    ),
}
"""Tensors left over from training."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Created by `read_variant` only; a plain LoRA is the default."""

    name: str = ""
    """The field that selects it; empty for a plain LoRA."""
    diagonal: bool = False
    blocks: int = 1
    in_a: tuple[str, ...] = ()
    """Parts of the paths of modules whose A consists of blocks."""
    in_b: tuple[str, ...] = ()
    group: int = 1
    """The number of inputs that A reads as one."""
    left: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters beside the pair's own."""
        return (_DIAGONAL,) if self.diagonal else self.left

    def widths(self, module: BaseModule, pair: tuple[int, int], rank: int) -> tuple[int, int]:
        """Return the columns of A and B in the file, given those of the plain `pair`."""
        inputs, (a_width, b_width) = module.in_features, pair
        if self._in(self.in_a, module) and a_width != inputs:
            return inputs // self.blocks, rank
        if self._in(self.in_b, module) and b_width != rank:
            return inputs, rank // self.blocks
        if self.group > 1 and a_width != inputs:
            return inputs // self.group, rank
        return inputs, rank

    def problems(
        self,
        file: TensorFile,
        keys: Keys,
        modules: Mapping[str, BaseModule],
        ranks: Mapping[str, int],
    ) -> Iterator[str]:
        """Yield the problems. `modules` are those with a pair, by path; `ranks` are the ranks of
        pairs that fit."""
        shapes: dict[str, tuple[int, ...]] = {}
        diagonals = keys.of(_DIAGONAL)
        for name, rank in ranks.items():
            module, found = modules[name], diagonals.get(name)
            if diagonals and found is None:
                yield f"{shown(name)} has no {_DIAGONAL}, but other modules have one"
            elif found is not None:
                shapes[found] = (rank,)
            if found is not None and rank >= min(module.in_features, module.out_features):
                yield f"{shown(name)}: KaSA of rank {rank} would leave nothing of its weight"
            both = self._in(self.in_a, module), self._in(self.in_b, module)
            whole = module.in_features if both[0] else module.out_features
            if all(both):
                yield f"use_bdlora lists {shown(name)} for blocks in both A and B"
            elif any(both) and (rank % self.blocks or whole % self.blocks):
                yield (
                    f"{shown(name)}: {self.blocks} blocks do not divide rank {rank} and "
                    f"{whole} features"
                )
            if module.in_features % self.group:
                yield f"{shown(name)}: groups of {self.group} do not divide {module.in_features}"
        stray = [name for name in diagonals if name not in modules]
        if stray:
            yield f"{_DIAGONAL} without a pair of matrices: {shown(stray[0])}"
        wrong: list[str] = []
        check_shapes(file, shapes, wrong)
        yield from wrong

    def pair(
        self,
        file: TensorFile,
        module: BaseModule,
        keys: Mapping[str, str],
        pair: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the equivalent plain pair: A `[R, I]`, B `[O, R]`."""
        a, b = pair
        if _DIAGONAL in keys:
            return a * file.read(keys[_DIAGONAL])[:, None], b
        if b.shape[1] != a.shape[0]:
            return a, _diagonal(b, self.blocks)
        if a.shape[1] != module.in_features:
            if self._in(self.in_a, module):
                return _diagonal(a, self.blocks), b
            # PEFT takes the mean of a group, times the number of groups.
            scale = a.shape[1] / self.group
            return a.float().repeat_interleave(self.group, dim=1) * scale, b
        return a, b

    def effect(self, keys: Mapping[str, str], rank: int) -> WithoutTail | None:
        """Return the effect beside the pair."""
        return WithoutTail(rank) if _DIAGONAL in keys else None

    def _in(self, parts: tuple[str, ...], module: BaseModule) -> bool:
        return self.blocks > 1 and any(part in module.name for part in parts)


def read_variant(fields: Fields) -> Variant:
    """Take the fields of all variants; problems are added to `fields`."""
    found: list[Variant] = []
    for name, training in _TRAINING.items():
        inner = _inside(fields, name)
        if inner is not None:
            inner.refuse_the_rest(training, {})
            found.append(Variant(name, diagonal=name == "kasa_config", left=_LEFT.get(name, ())))
    inner = _inside(fields, "use_bdlora")
    if inner is not None:
        blocks = inner.take("nblocks", check.rank, 1)
        in_a = inner.take("target_modules_bd_a", check.listed("parts of modules' paths"), ())
        in_b = inner.take("target_modules_bd_b", check.listed("parts of modules' paths"), ())
        # Whether training refused a module without blocks.
        inner.refuse_the_rest(frozenset({"match_strict"}), {})
        found.append(Variant("use_bdlora", blocks=blocks, in_a=in_a, in_b=in_b))
    group = fields.take("qalora_group_size", check.rank, 16)
    if fields.take("use_qalora", check.boolean, False):
        if group == 1:
            fields.problems.append(
                "use_qalora with groups of one input (qalora_group_size 1) means different things "
                "beside GPTQ's linears and beside plain ones, and the file does not say which "
                "linears it is for"
            )
        found.append(Variant("use_qalora", group=group))
    if len(found) > 1:
        fields.problems.append(
            f"PEFT does not make a LoRA with {' and '.join(one.name for one in found)}"
        )
    return found[0] if found else Variant()


def _inside(fields: Fields, name: str) -> Fields | None:
    """Return None if the field is missing or is not an object; the latter is a problem."""
    fields.take(name, _object, None)
    inner = fields.inside(name)
    return inner if inner is not None and fields.raw(name) else None


def _object(value: Any) -> None:
    if value and not isinstance(value, dict):
        raise Wrong("must be an object")


def _diagonal(stacked: Tensor, blocks: int) -> Tensor:
    """Return a block-diagonal matrix of the stacked blocks."""
    rows, columns = stacked.shape
    whole = stacked.new_zeros(blocks, rows // blocks, blocks, columns)
    at = torch.arange(blocks)
    whole[at, :, at] = stacked.view(blocks, rows // blocks, columns)
    return whole.view(rows, blocks * columns)
