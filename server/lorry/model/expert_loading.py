"""Experts are quantized as they are read: transformers would first read all of them.

It asks the quantizer of a base what to do with each parameter once it is complete. bitsandbytes'
quantizers know linears alone; these know the stacked weights of experts as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationMethod

from lorry.model.expert_layouts import PROJECTIONS, holds_experts
from lorry.model.experts import quantize_projection
from lorry.model.half_embedding import expect_half
from lorry.model.memory import give_back_freed
from lorry.model.progress import Meter

_METHODS = {True: "lorry_bitsandbytes_4bit", False: "lorry_bitsandbytes_8bit"}
"""What transformers calls the quantizers: of 4 bits, and of 8."""

_MANY = 8 << 20
"""Weights."""


class ExpertsConfig(BitsAndBytesConfig):  # type: ignore[misc]
    """bitsandbytes' configuration, for a base on a CPU."""

    def __init__(self, *, meter: Meter | None = None, **fields: Any) -> None:
        """`meter` counts the weights that are done."""
        super().__init__(**fields)
        self.quant_method = _METHODS[self.load_in_4bit]
        self.meter = meter


def _is_stack(model: PreTrainedModel, name: str) -> bool:
    module, leaf = get_module_from_name(model, name)
    weight = getattr(module, leaf, None)
    return (
        holds_experts(module)
        and leaf in PROJECTIONS
        and isinstance(weight, Tensor)
        and weight.ndim == 3
    )


class _Quantize(ConversionOps):  # type: ignore[misc]
    """Puts stacks where they belong, and leaves linears to bitsandbytes."""

    def __init__(
        self, config: BitsAndBytesConfig, linears: ConversionOps, tell: Callable[[int], None]
    ) -> None:
        """`tell` is told the number of weights that are done."""
        self._config, self._linears, self._tell = config, linears, tell

    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        model: PreTrainedModel,
        missing_keys: set[str],
        **more: Any,
    ) -> dict[str, Any]:
        rest = {}
        for name, value in input_dict.items():
            self._tell(getattr(*get_module_from_name(model, name)).numel())
            if not _is_stack(model, name):
                rest[name] = value
                continue
            module, leaf = get_module_from_name(model, name)
            weight, wanted = value[0] if isinstance(value, list) else value, getattr(module, leaf)
            if weight.shape != wanted.shape:
                raise ValueError(f"{name} is {[*weight.shape]}, not {[*wanted.shape]}")
            kind = self._config.bnb_4bit_quant_type if self._config.load_in_4bit else "int8"
            double_quant = bool(self._config.bnb_4bit_use_double_quant)
            quantize_projection(module, leaf, weight, kind, double_quant=double_quant)
            missing_keys.discard(name)
        if not rest:
            return {}
        found: dict[str, Any] = self._linears.convert(
            rest, model=model, missing_keys=missing_keys, **more
        )
        return found


class _StacksToo:
    """Of a quantizer of bitsandbytes'."""

    quantization_config: BitsAndBytesConfig

    def __init__(self, quantization_config: BitsAndBytesConfig, **more: Any) -> None:
        super().__init__(quantization_config, **more)  # type: ignore[call-arg]
        # From here on everything else should see bitsandbytes' own method.
        quantization_config.quant_method = QuantizationMethod.BITS_AND_BYTES
        self._meter = vars(quantization_config).pop("meter", None)
        self._weights = self._done = 0

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, *, checkpoint_files: Sequence[str] | None, **more: Any
    ) -> None:
        super()._process_model_before_weight_loading(model, **more)  # type: ignore[misc]
        expect_half(model, checkpoint_files or ())
        names = [n for n, _ in model.named_parameters() if self.param_needs_quantization(model, n)]
        self._weights = sum(model.get_parameter(name).numel() for name in names)

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **more: Any
    ) -> bool:
        linear = super().param_needs_quantization(model, param_name, **more)  # type: ignore[misc]
        return bool(linear) or _is_stack(model, param_name)

    def get_quantize_ops(self) -> ConversionOps:
        linears = super().get_quantize_ops()  # type: ignore[misc]
        return _Quantize(self.quantization_config, linears, self._tell)

    def _tell(self, weights: int) -> None:
        if (self._done + weights) // _MANY > self._done // _MANY:
            # The C library keeps what tensors of some megabytes took, for others of their size.
            give_back_freed()
        self._done += weights
        if self._meter is not None:
            # In bytes of bfloat16, as most files have them.
            self._meter("quantizing", 2 * self._done, 2 * self._weights)


@register_quantizer(_METHODS[True])
class _FourBits(_StacksToo, Bnb4BitHfQuantizer):  # type: ignore[misc]
    pass


@register_quantizer(_METHODS[False])
class _EightBits(_StacksToo, Bnb8BitHfQuantizer):  # type: ignore[misc]
    pass
