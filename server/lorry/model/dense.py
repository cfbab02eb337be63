"""What the weight of a module is worth, however it is stored."""

from __future__ import annotations

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorry.model.quantized_linear import QuantizedLinear

_ROWS = 256
"""Of the identity at a time."""


def dense_weight(module: nn.Module) -> Tensor:
    """`[O, I]` in fp32, a copy; of an embedding its table `[V, H]`. Any thread."""
    with torch.inference_mode():
        if isinstance(module, QuantizedLinear):
            return module.dense_weight()
        if isinstance(module, Linear8bitLt):
            codes_OI, absmax_O = codes_of(module)
            exact_OI: Tensor = codes_OI.float() * (absmax_O.float() / 127).unsqueeze(1)
            return exact_OI
        if isinstance(module, Linear4bit):
            if not getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                weight_OI: Tensor = dequantize_4bit(module.weight.data, module.weight.quant_state)
                return weight_OI.float()
            return _by_asking(module)
        weight = module.weight
        assert isinstance(weight, Tensor)
        # GPT-2's linears are stored the other way round.
        weight = weight.T if isinstance(module, Conv1D) else weight
        return weight.detach().to(torch.float32, copy=True)


def codes_of(module: Linear8bitLt) -> tuple[Tensor, Tensor]:
    """bitsandbytes' int8 codes `[O, I]` and the largest magnitude of each row, wherever it keeps
    them now."""
    codes_OI = module.state.CB if module.state.CB is not None else module.weight.CB
    absmax_O = module.state.SCB if module.state.SCB is not None else module.weight.SCB
    return codes_OI, absmax_O


def _by_asking(module: Linear4bit) -> Tensor:
    """The answers to the unit vectors: bitsandbytes has put the 4-bit codes in an order of the
    processor's own, and only the module itself knows it."""
    eye_II = torch.eye(module.in_features, dtype=module.compute_dtype)
    rows_IO = torch.cat([module(part) for part in torch.split(eye_II, _ROWS)]).float()
    return (rows_IO if module.bias is None else rows_IO - module.bias.float()).T.contiguous()
