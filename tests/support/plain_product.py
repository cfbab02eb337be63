"""The compiled step's roundings by plain operations, in an int8 base on PyTorch's path."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lorry.model.chunks import CHUNK, FAR_8_BITS, rounded
from lorry.model.executor import Executor
from lorry.model.expert_stacks import Int8Stack
from lorry.model.int8 import Int8Linear
from lorry.model.paths import FirstPass, Kernels
from support.executor_driver import ExecutorDriver


class PlainProduct(Int8Linear):
    """Rounds activations as the compiled step does, where `Int8Linear` keeps 14 bits of each."""

    def forward(self, x: Tensor) -> Tensor:
        if self.in_features % CHUNK:
            return super().forward(x)
        return F.linear(rounded(x, FAR_8_BITS), self.dense_weight(), self.bias)


def round_as_compiled(model: PreTrainedModel) -> None:
    """An int8 base on PyTorch's path rounds activations as on the compiled step: all but its head
    do in chunks. What differs then is not the rounding."""
    head, done = model.get_output_embeddings(), 0
    for module in model.modules():
        linears = module._linears if isinstance(module, Int8Stack) else (module,)
        for linear in linears:
            if type(linear) is Int8Linear and linear is not head:
                linear.__class__ = PlainProduct
                done += 1
    assert done


class RoundedDriver(ExecutorDriver):
    """An executor on PyTorch's path with these roundings, its cache in half precision."""

    def start(self, found: FirstPass, kernels: Kernels, is_checked: bool) -> Executor:
        round_as_compiled(self.loaded.model)
        return super().start(found, replace(kernels, kv_dtype=torch.float16), is_checked)
