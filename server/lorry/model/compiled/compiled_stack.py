"""The experts of a layer whose products are compiled.

A stack is packed as one linear of all experts' outputs. An expert's part of it is a linear of its
own, with no copy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorry.model.chunks import CHUNK
from lorry.model.compiled.multiplier import TRIED, Multiplier, is_close
from lorry.model.compiled.pack import BLOCK, PackedLinear
from lorry.model.compiled.packer import Packer
from lorry.model.expert_stacks import ExpertStack, PlainStack
from lorry.model.experts import put, stacks_of
from lorry.model.guard import require

logger = logging.getLogger(__name__)


class CompiledStack(ExpertStack):
    """Rounds activations as every compiled product does."""

    def __init__(self, packed: PackedLinear, experts: int, multiplier: Multiplier) -> None:
        packed.check()
        outputs = packed.out_features // experts
        require(
            outputs * experts == packed.out_features and outputs % BLOCK == 0,
            f"{packed.out_features} outputs of {experts} experts",
        )
        super().__init__(experts, outputs, packed.in_features)
        self.packed = packed
        self._multiplier = multiplier

    def base_tensors(self) -> Mapping[str, Tensor]:
        return self.packed.tensors()

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def multiply(self, expert: int, x_SI: Tensor) -> Tensor:
        part = self.packed.part(expert * self.out_features, self.out_features)
        return self._multiplier(part.struct, x_SI)


def packable(stack: ExpertStack) -> bool:
    """True if experts are whole blocks, and the inputs whole chunks where they are in 4 bits."""
    if not isinstance(stack, PlainStack):
        return False
    chunk = CHUNK if "levels" in stack.base_tensors() else BLOCK
    return stack.out_features % BLOCK == 0 and stack.in_features % chunk == 0


def replace_stacks(model: nn.Module, packer: Packer, multiplier: Multiplier) -> None:
    """Pack the experts that can be; the others stay as they are, and so do all of a kind whose
    product is not right on this machine."""
    right: dict[bool, bool] = {}
    for module, name, stack in stacks_of(model):
        if not isinstance(stack, PlainStack) or not packable(stack):
            continue
        four_bits = "levels" in stack.base_tensors()
        if not right.get(four_bits, True):
            continue
        compiled = CompiledStack(packer.tensors(stack.base_tensors()), stack.experts, multiplier)
        if four_bits not in right:
            right[four_bits] = _is_right(stack, compiled)
            if not right[four_bits]:
                logger.warning("the compiled product of experts is wrong here; it is not used")
                continue
        put(module, name, compiled)


def _is_right(stack: PlainStack, compiled: CompiledStack) -> bool:
    """Compare the product of the last expert, which has the largest offset."""
    x_SI = torch.randn(TRIED, stack.in_features, generator=torch.Generator().manual_seed(1))
    expert = stack.experts - 1
    found_SO = compiled.multiply(expert, x_SI)
    return torch.equal(compiled.multiply(expert, x_SI[:3]), found_SO[:3]) and is_close(
        found_SO, stack.multiply(expert, x_SI)
    )
