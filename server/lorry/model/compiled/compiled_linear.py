"""A base's linear whose product is compiled, whatever runs the steps.

The weights are packed once, when the base is loaded, and exist in that form alone. The compiled
step reads the same memory. Without it PyTorch's operations run the steps, and these modules
multiply: a 4-bit base would otherwise dequantize every weight in every step.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Mapping

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from transformers import PreTrainedModel

from lorry.model.compiled import structs
from lorry.model.compiled.pack import BLOCK, PackedLinear, pack
from lorry.model.four_bit import FourBitLinear, convertible, dense
from lorry.model.quantized_linear import QuantizedLinear

logger = logging.getLogger(__name__)

_ROWS = 64
"""Of one product; more are multiplied one after the other."""

_TOLERANCE = 1e-3
"""Of the largest number: a code of an activation may flip."""


class Multiplier:
    """The threads and the memory of products. One at a time, from one thread; it ends with the
    last linear that has it."""

    def __init__(self, library: ctypes.CDLL, widest: int, num_threads: int) -> None:
        """`widest`: inputs of a linear. Raises MemoryError where there is no memory or there are
        no threads."""
        self._library = library
        # A model without layers: its sizes are what the activations need.
        model = structs.Model(
            hidden=BLOCK, heads=1, kv_heads=1, head_size=BLOCK, inner=widest, vocab=BLOCK
        )
        self._model = model
        self._engine = library.lorry_engine(ctypes.byref(model), _ROWS, 1, BLOCK, num_threads)
        if not self._engine:
            raise MemoryError("no memory or no threads for the compiled product")
        weakref.finalize(self, library.lorry_engine_free, self._engine)

    def __call__(self, linear: structs.Linear, x: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`."""
        x_TI = x.reshape(-1, linear.in_).float().contiguous()
        y_TO = torch.empty(len(x_TI), linear.out)
        for first in range(0, len(x_TI), _ROWS):
            rows, answers = x_TI[first : first + _ROWS], y_TO[first : first + _ROWS]
            self._library.lorry_linear(
                self._engine, ctypes.byref(linear), rows.data_ptr(), answers.data_ptr(), len(rows)
            )
        return y_TO.view(*x.shape[:-1], linear.out)


class CompiledLinear(QuantizedLinear):
    """In 4 bits."""

    def __init__(self, linear: FourBitLinear, multiplier: Multiplier) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias)
        self.packed: PackedLinear = pack(linear)
        self._struct = self.packed.struct
        self._multiplier = multiplier

    def __deepcopy__(self, memo: dict[int, object]) -> CompiledLinear:
        return self

    def base_tensors(self) -> Mapping[str, Tensor]:
        return self.packed.tensors()

    def dense_weight(self) -> Tensor:
        return dense(self.base_tensors())

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return self._multiplier(self._struct, x)


def replace_four_bits(model: PreTrainedModel, library: ctypes.CDLL) -> bool:
    """Replace bitsandbytes' 4-bit linears by compiled ones; true if all of them were. Before
    bitsandbytes has packed a weight for the processor.

    None is replaced where activations are not fp32, where a block is of a kind that `convertible`
    does not know, or where the product is not right on this machine.
    """
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, Linear4bit)]
    fit = all(convertible(m) and m.out_features % BLOCK == 0 for _, m in modules)
    if not modules or not fit or model.dtype is not torch.float32:
        return False
    widest = max(module.in_features for _, module in modules)
    multiplier = Multiplier(library, widest, torch.get_num_threads())
    with torch.inference_mode():
        if not _is_right(FourBitLinear.of(modules[0][1]), multiplier):
            logger.warning("the compiled product of 4-bit weights is wrong here; it is not used")
            return False
        for name, module in modules:
            parent, _, leaf = name.rpartition(".")
            compiled = CompiledLinear(FourBitLinear.of(module), multiplier)
            setattr(model.get_submodule(parent), leaf, compiled)
    return True


def _is_right(linear: FourBitLinear, multiplier: Multiplier) -> bool:
    x_TI = torch.randn(3, linear.in_features, generator=torch.Generator().manual_seed(1))
    expected = linear(x_TI)
    off = (CompiledLinear(linear, multiplier)(x_TI) - expected).abs().max()
    return bool(off <= _TOLERANCE * expected.abs().max())
