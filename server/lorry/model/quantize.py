"""How the base's weights are kept: what was asked for, and what bitsandbytes made of it.

bitsandbytes finishes a layer's storage in its first forward pass: a CPU with
AVX512-BF16 repacks 4-bit weights and rounds their block scales to bfloat16, int8 moves
its scales. `settle` makes it do that at load, so that afterwards no byte of the base
ever changes. The packing is kept, where a shape allows it, because its products take a
third of the time and a row's do not depend on the rows beside it, which the plain ones' do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig

from lorry.errors import ModelError, UnsupportedModel
from lorry.model.quantized_linear import QuantizedLinear
from lorry.option import format_size
from lorry.settings import Settings

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_PACKED_ROWS = 32
"""bitsandbytes packs 4-bit weights for a CPU in blocks of so many rows."""


class Quantization(StrEnum):
    NF4 = "nf4"
    FP4 = "fp4"
    INT8 = "int8"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Precision:
    """Resolved: nothing is `auto` any more."""

    device: torch.device
    dtype: torch.dtype
    """Of unquantized weights, of activations, and of the arithmetic of quantized layers."""
    quantization: Quantization
    double_quant: bool
    int8_threshold: float


def resolve(settings: Settings) -> Precision:
    """Raises ModelError where the machine has not what is asked for."""
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise ModelError(
            "--device cuda: PyTorch sees no CUDA device here; check the driver and that the "
            "installed torch is a CUDA build, or use --device cpu"
        )
    if settings.device == "cpu" or not cuda:
        device = torch.device("cpu")
    else:
        device = torch.device("cuda", torch.cuda.current_device())
    name = settings.dtype
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    kind = settings.quantize
    if kind == "auto":
        kind = "nf4" if device.type == "cuda" else "int8"
    return Precision(
        device=device,
        dtype=_DTYPES[name],
        quantization=Quantization(kind),
        double_quant=settings.bnb_4bit_double_quant,
        int8_threshold=settings.int8_threshold,
    )


def fitting(
    precision: Precision, *, weights: int, table: int, beside: int, free: int
) -> tuple[Precision, str | None]:
    """`auto` on a CPU: int8 if it fits in memory, else nf4, and a line that says why.

    `weights`: numbers in the linears. `table`: bytes of the embeddings. `beside`: bytes of the KV
    cache and the host cache. `free`: bytes of memory.
    """
    if precision.device.type != "cpu" or precision.quantization is not Quantization.INT8:
        return precision, None
    needed = weights + table + beside
    if needed <= free:
        return precision, None
    return replace(precision, quantization=Quantization.NF4), (
        f"nf4 weights, since int8 ones would need {format_size(needed)} with the caches and "
        f"{format_size(free)} are free (--quantize int8 takes them all the same)"
    )


def bitsandbytes_config(
    precision: Precision, made: Callable[..., BitsAndBytesConfig] = BitsAndBytesConfig
) -> BitsAndBytesConfig | None:
    """What `from_pretrained` is told; None leaves the weights as they are."""
    match precision.quantization:
        case Quantization.NONE:
            return None
        case Quantization.INT8:
            return made(load_in_8bit=True, llm_int8_threshold=float(precision.int8_threshold))
        case kind:
            return made(
                load_in_4bit=True,
                bnb_4bit_quant_type=kind.value,
                bnb_4bit_compute_dtype=precision.dtype,
                bnb_4bit_use_double_quant=precision.double_quant,
            )


def stored_quantization(config: PretrainedConfig, asked: str) -> Quantization | None:
    """How the checkpoint itself is quantized, None where it is not.

    `asked` is the setting. Raises UnsupportedModel for anything but bitsandbytes, and
    where `asked` is something else than what is stored.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    fields = stored if isinstance(stored, dict) else stored.to_dict()
    method = str(fields.get("quant_method") or "an unnamed method")
    if fields.get("load_in_4bit"):
        kind = Quantization(str(fields.get("bnb_4bit_quant_type", "fp4")))
    elif fields.get("load_in_8bit"):
        kind = Quantization.INT8
    else:
        raise UnsupportedModel(
            f"the checkpoint is already quantized with {method}, which is not served; "
            "use the original weights, or a bitsandbytes checkpoint"
        )
    if asked not in ("auto", kind):
        raise UnsupportedModel(
            f"--quantize {asked}: the checkpoint is already quantized as {kind}; "
            f"use --quantize {kind}, or the original weights"
        )
    return kind


def is_quantized(module: nn.Module) -> bool:
    return isinstance(module, Linear4bit | Linear8bitLt)


def rounds_activations(model: nn.Module) -> bool:
    """True if a layer rounds its activations whatever their type: our own do, and bitsandbytes'
    4-bit product on processors with AVX512-BF16."""
    return any(
        isinstance(module, QuantizedLinear)
        or (
            isinstance(module, Linear4bit)
            and module.weight.device.type == "cpu"
            and module.support_avx512bf16_for_cpu
        )
        for module in model.modules()
    )


def settle(model: nn.Module, precision: Precision) -> None:
    """Bring every quantized layer into the storage in which it will stay.

    A 4-bit layer whose shape the CPU packing cannot hold keeps the plain format;
    bitsandbytes would raise in its first forward pass.
    """
    with torch.inference_mode():
        for module in model.modules():
            if isinstance(module, Linear8bitLt):
                if module.weight.CB is not None:
                    module.init_8bit_state()
            elif isinstance(module, Linear4bit):
                # In another dtype than the layer's own, its bias would be cast in place.
                module.compute_dtype = precision.dtype
                module.compute_type_is_set = True
                if not _can_pack(module):
                    module.support_avx512bf16_for_cpu = False
                row_1I = torch.zeros(
                    1, module.in_features, dtype=precision.dtype, device=precision.device
                )
                module(row_1I)


def _can_pack(module: Linear4bit) -> bool:
    blocksize = module.weight.quant_state.blocksize
    rows_fit = module.out_features % _PACKED_ROWS == 0
    return bool(rows_fit and module.in_features % blocksize == 0)
