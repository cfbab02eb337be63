"""Which of the base's linears run on which kernel. Decided once, after the base is loaded.

bitsandbytes' own modules are the reference and serve on CUDA. On a CPU int8 runs on
`Int8Linear`, which keeps bitsandbytes' integers. The output head, which bitsandbytes
leaves in fp32, follows in int8: on a small model it is most of a decode step's
bytes. So do linears of a class of their own (Falcon's), which transformers leaves unquantized.
Where the compiled step was built, its own product replaces all of them
(`lorry.model.compiled.compiled_linear`).
"""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorry.model import int8
from lorry.model.half_embedding import dtype_beside_table
from lorry.model.int8 import Int8Linear


def use_int8_kernels(model: PreTrainedModel, *, threshold: float = 0.0) -> int:
    """Replace bitsandbytes' int8 modules and the head by `Int8Linear`; how many were.

    Nothing is replaced where the kernel does not exist or activations are not fp32.
    `threshold`: bitsandbytes' own; above 0 it keeps what it made.
    """
    if not int8.available() or dtype_beside_table(model) is not torch.float32:
        return 0
    head = model.get_output_embeddings()
    replaced = 0
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear8bitLt) and module.state.threshold == 0.0:
            kernel = _from_bitsandbytes(module)
        elif (module is head and type(module) is nn.Linear) or (
            threshold == 0.0 and is_left_out(module)
        ):
            kernel = _quantized(module)
        else:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, kernel)
        replaced += 1
    return replaced


def is_left_out(module: nn.Module) -> TypeGuard[nn.Linear]:
    """True if it multiplies as a linear does, and is of another class."""
    kinds = (nn.Linear, Linear8bitLt, Linear4bit)
    if not isinstance(module, nn.Linear) or type(module) in kinds:
        return False
    x_TI = torch.randn(2, module.in_features, generator=torch.Generator().manual_seed(1))
    try:
        with torch.inference_mode():
            return torch.allclose(
                module(x_TI), F.linear(x_TI, module.weight, module.bias), atol=1e-5, rtol=1e-5
            )
    except (RuntimeError, TypeError, ValueError):
        return False


def _from_bitsandbytes(module: Linear8bitLt) -> Int8Linear:
    """The same integers and scales; bitsandbytes' scale is a row's absmax, 127 codes."""
    codes_OI = module.weight.data
    scale_O = module.state.SCB if module.state.SCB is not None else module.weight.SCB
    return Int8Linear(codes_OI, scale_O.float() / 127, module.bias)


def _quantized(module: nn.Linear) -> Int8Linear:
    """Row absmax, as bitsandbytes does it (arXiv:2208.07339, section 2.1)."""
    weight_OI: Tensor = module.weight.data.float()
    absmax_O = weight_OI.abs().amax(1).clamp_min(1e-30)
    codes_OI = (weight_OI * (127 / absmax_O.unsqueeze(1))).round().to(torch.int8)
    return Int8Linear(codes_OI, absmax_O / 127, module.bias)
