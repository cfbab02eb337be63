"""A base's linear whose product is compiled, whatever runs the steps.

The weights are packed once, when the base is loaded, and exist in that form alone. The compiled
step reads the same memory. Without it PyTorch's operations run the steps, and these modules
multiply: a 4-bit base would otherwise dequantize every weight in every step.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorry.model import int8
from lorry.model.compiled.compiled_stack import packable, replace_stacks
from lorry.model.compiled.multiplier import TRIED, Multiplier, is_close
from lorry.model.compiled.pack import BLOCK, PackedLinear
from lorry.model.compiled.packer import Packer
from lorry.model.dense import codes_of, dense_weight
from lorry.model.experts import stacks_of
from lorry.model.four_bit import FourBitLinear, convertible, dense
from lorry.model.guard import require
from lorry.model.half_embedding import dtype_beside_table
from lorry.model.kernels import is_left_out
from lorry.model.quantized_linear import QuantizedLinear, was_transposed

logger = logging.getLogger(__name__)

_CHECKED = 256
"""Outputs of a linear that are compared with the plain formula."""


class CompiledLinear(QuantizedLinear):
    """The packed weight may have more outputs, of zeros: it consists of whole blocks."""

    def __init__(
        self,
        packed: PackedLinear,
        out_features: int,
        multiplier: Multiplier,
        *,
        transposed: bool = False,
    ) -> None:
        packed.check()
        require(out_features <= packed.out_features, f"{out_features} outputs")
        bias_O = None if packed.bias_O is None else packed.bias_O[:out_features]
        super().__init__(packed.in_features, out_features, bias_O)
        self.packed = packed
        self.transposed = transposed
        self._struct = packed.struct
        self._multiplier = multiplier

    def __deepcopy__(self, memo: dict[int, object]) -> CompiledLinear:
        return self

    def base_tensors(self) -> Mapping[str, Tensor]:
        tensors = self.packed.tensors()
        if self.out_features == self.packed.out_features:
            return tensors
        whole = torch.contiguous_format
        return {
            name: t if name == "levels" else t[: self.out_features].clone(memory_format=whole)
            for name, t in tensors.items()
        }

    def dense_weight(self) -> Tensor:
        tensors = self.base_tensors()
        return dense(tensors) if "levels" in tensors else int8.dense(tensors)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return self._multiplier(self._struct, x)[..., : self.out_features]


def replace_linears(model: PreTrainedModel, library: ctypes.CDLL) -> bool:
    """Replace bitsandbytes' linears and the output head by compiled ones; true if all were. Before
    bitsandbytes has rearranged a weight for the processor.

    The head, which bitsandbytes leaves unquantized, is kept in 8 bits: on a small model it is most
    of a decode step's bytes. So are linears of a class of their own, as Falcon's. None is replaced
    where activations are not fp32, where one has a form that the compiled step does not know, or
    where a product is not right on this machine.
    """
    head = model.get_output_embeddings()
    modules = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit | Linear8bitLt)
    ]
    left_out = [(name, module) for name, module in model.named_modules() if is_left_out(module)]
    if dtype_beside_table(model) is not torch.float32 or not all(_fits(m) for _, m in modules):
        return False
    modules += [(name, linear) for name, linear in left_out if linear.in_features % BLOCK == 0]
    if not modules:
        return False
    named = next((n for n, m in model.named_modules() if m is head), None)
    if named is not None and type(head) is nn.Linear and head.in_features % BLOCK == 0:
        modules.append((named, head))
    threads = torch.get_num_threads()
    stacks = [stack for _, _, stack in stacks_of(model) if packable(stack)]
    widest = max(m.in_features for m in (*(m for _, m in modules), *stacks))
    multiplier = Multiplier(library, widest, threads)
    packer = Packer(library, threads)
    # One of each class is compared before any is replaced.
    checked: dict[str, CompiledLinear] = {}
    try:
        with torch.inference_mode():
            for kind, (name, module) in {type(m): (n, m) for n, m in reversed(modules)}.items():
                checked[name] = _compiled(module, packer, multiplier)
                if not _is_right(module, checked[name]):
                    logger.warning(
                        "the compiled product of %s is wrong here; it is not used", kind.__name__
                    )
                    return False
            del left_out
            while modules:
                name, module = modules.pop()
                parent, _, leaf = name.rpartition(".")
                compiled = checked.pop(name, None) or _compiled(module, packer, multiplier)
                setattr(model.get_submodule(parent), leaf, compiled)
                # bitsandbytes' weight knows its module: the two would wait for the collector, and
                # memory has no room for the base twice.
                module._parameters.clear()
            replace_stacks(model, packer, multiplier)
    finally:
        packer.close()
    return True


def _fits(module: nn.Module) -> bool:
    if isinstance(module, Linear8bitLt):
        codes_OI, absmax_O = codes_of(module)
        ready = codes_OI is not None and absmax_O is not None and module.state.threshold == 0.0
        return bool(ready and codes_OI.shape[1] % BLOCK == 0)
    return isinstance(module, Linear4bit) and convertible(module)


def _compiled(module: nn.Module, packer: Packer, multiplier: Multiplier) -> CompiledLinear:
    match module:
        case Linear4bit():
            packed = packer.four_bits(FourBitLinear.of(module).base_tensors())
        case Linear8bitLt():
            codes_OI, absmax_O = codes_of(module)
            packed = packer.int8(codes_OI.contiguous(), absmax_O.float() / 127, module.bias)
        case nn.Linear():
            codes_OI, scale_O = packer.quantized(module.weight.data.contiguous())
            # One of another class is a layer's, as Falcon's are.
            is_head = type(module) is nn.Linear
            packed = packer.int8(codes_OI, scale_O, module.bias, is_head=is_head)
        case _:
            raise TypeError(type(module).__name__)
    return CompiledLinear(
        packed, module.out_features, multiplier, transposed=was_transposed(module)
    )


def _is_right(module: nn.Module, compiled: CompiledLinear) -> bool:
    """Compared with the plain formula, on a few rows of outputs. The number of tokens decides
    which instructions multiply them; to the bits of a row it makes no difference."""
    x_TI = torch.randn(TRIED, compiled.in_features, generator=torch.Generator().manual_seed(1))
    y_TO = compiled(x_TI)
    if not torch.equal(compiled(x_TI[:3]), y_TO[:3]):
        return False
    # A head, which is not quantized yet, is as large as all the layers of a small base.
    quantized = isinstance(module, Linear4bit | Linear8bitLt)
    weight_OI = dense_weight(module) if quantized else module.get_parameter("weight")
    expected = F.linear(x_TI, weight_OI[:_CHECKED].float())
    if compiled.bias is not None:
        expected += compiled.bias[:_CHECKED]
    return is_close(y_TO[:, :_CHECKED], expected)
