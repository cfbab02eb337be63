"""The base's quantized linears that are our own, in the place of bitsandbytes'."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class QuantizedLinear(nn.Module, ABC):
    """y = x W' + bias, on the CPU in fp32, of activations that are rounded as `lorry.model.int8` or
    `lorry.model.chunks` says.

    The weight is never changed, so copies of a module share it.
    """

    bias: Tensor | None
    transposed = False
    """True if it stands for a `Conv1D`: adapters for it say `fan_in_fan_out`."""

    def __init__(self, in_features: int, out_features: int, bias_O: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # No loader looks for them in a base's files.
        bias = None if bias_O is None else bias_O.float().clone()
        self.register_buffer("bias", bias, persistent=False)
        # Modeling code asks a projection for its weight's dtype; the weight itself is elsewhere.
        self.register_buffer("weight", torch.empty(0, in_features), persistent=False)

    @abstractmethod
    def base_tensors(self) -> Mapping[str, Tensor]:
        """The weight as numbers: what shows that it never changes. May be copies."""

    @abstractmethod
    def dense_weight(self) -> Tensor:
        """`[O, I]` in fp32, a copy."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Of the weight, its scales and the bias."""


def was_transposed(module: nn.Module) -> bool:
    """True if bitsandbytes made the linear of a `Conv1D`, with the transposed weight, which
    transformers notes in it."""
    return issubclass(getattr(module, "source_cls", nn.Linear), Conv1D)
