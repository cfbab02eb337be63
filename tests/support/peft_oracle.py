"""What transformers and PEFT say: the truth that the server's numbers are compared with.

One sequence at a time, no cache, no batch, the attention that transformers chooses. Scale is
PEFT's own `set_scale`; several adapters are active together, their deltas summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorry.model.chunks import CHUNK, FAR_8_BITS, rounded
from lorry.model.expert_layouts import PROJECTIONS, holds_experts
from lorry.model.expert_stacks import quantized
from lorry.model.four_bit import FourBitLinear
from support.half_cache import HalfCache

Adapters = Sequence[tuple[Path, float]]
"""Folders and their scales."""


def quantization_config(quantization: str) -> Any:
    """As a user of transformers would ask for it; the compute type is float32."""
    match quantization:
        case "nf4" | "fp4":
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=quantization,
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
            )
        case "int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    raise AssertionError(quantization)


class PeftOracle:
    """A base from `model_folder`, and every adapter that it is ever asked about."""

    def __init__(self, model_folder: Path, quantization: str = "none") -> None:
        more: dict[str, Any] = {}
        if quantization != "none":
            more["quantization_config"] = quantization_config(quantization)
        self.base = AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=torch.float32, **more
        ).eval()
        if quantization != "none":
            round_experts(self.base, quantization)
        for module in self.base.modules():
            # bitsandbytes would pack it for the processor, and fail.
            if isinstance(module, Linear4bit) and module.out_features % 32:
                module.support_avx512bf16_for_cpu = False
        self._is_kept_in_half = False
        self._peft: PeftModel | None = None
        self._names: dict[Path, str] = {}

    def multiply_exactly(self) -> None:
        """Keep a base's integers and scales, but not bitsandbytes' arithmetic with them: no
        activation is rounded to 8 bits any more. Levels of 4 bits and what they meet are rounded
        as the server's are (`tests/unit/model/test_four_bit.py` compares them with bitsandbytes'),
        and the output head, which bitsandbytes leaves alone, to 8 bits row by row."""
        for module in self.base.modules():
            if isinstance(module, Linear8bitLt):
                module.forward = _exact_int8(module)  # type: ignore[method-assign]
            elif isinstance(module, Linear4bit):
                with torch.no_grad():
                    module.forward = FourBitLinear.of(module).forward  # type: ignore[method-assign]
        head = self.base.get_output_embeddings()
        scale_O1 = head.weight.detach().abs().amax(1, keepdim=True) / 127
        rounded_OI = (head.weight.detach() / scale_O1).round() * scale_O1
        head.forward = lambda x: torch.nn.functional.linear(x, rounded_OI, head.bias)

    def multiply_as_compiled(self) -> None:
        """Exactly, but of activations that are rounded as the compiled step does it in 8 bits, with
        keys and values in half precision as its cache has them."""
        self.multiply_exactly()
        self._is_kept_in_half = True
        for module in self.base.modules():
            if isinstance(module, Linear8bitLt) and module.in_features % CHUNK == 0:
                module.forward = partial(_round_and_call, module.forward)  # type: ignore[method-assign]

    def preload(self, folders: Sequence[Path]) -> None:
        """Wrap the base with these adapters, before its first forward pass.

        Needed on a 4-bit base: bitsandbytes packs it for the CPU in its first forward pass,
        and unpacks it, rounding the block scales once more, when PEFT later reads its state.
        """
        for folder in folders:
            self._name_of(folder)

    @torch.inference_mode()
    def logprobs(self, adapters: Adapters, token_ids: Sequence[int]) -> torch.Tensor:
        """Log-softmax [T, V] float32; row t is the distribution of token t + 1."""
        with self._active(adapters) as model:
            cache = {"past_key_values": HalfCache()} if self._is_kept_in_half else {}
            ids = torch.tensor([list(token_ids)])
            logits = model(ids, use_cache=self._is_kept_in_half, **cache).logits[0]
        return torch.log_softmax(logits.float(), dim=-1)

    def prompt_logprobs(self, adapters: Adapters, token_ids: Sequence[int]) -> list[float]:
        """The logprob of every token but the first, given those before it: T - 1 numbers."""
        table_TV = self.logprobs(adapters, token_ids)
        targets = torch.tensor(list(token_ids[1:]))
        return table_TV[:-1].gather(1, targets[:, None])[:, 0].tolist()  # type: ignore[no-any-return]

    def greedy(self, adapters: Adapters, token_ids: Sequence[int], count: int) -> list[int]:
        """The next `count` tokens, each the arg max; an end-of-text token does not stop it."""
        ids = list(token_ids)
        for _ in range(count):
            ids.append(int(self.logprobs(adapters, ids)[-1].argmax()))
        return ids[len(token_ids) :]

    @contextmanager
    def _active(self, adapters: Adapters) -> Iterator[torch.nn.Module]:
        if not adapters:
            if self._peft is None:
                yield self.base
                return
            with self._peft.disable_adapter():
                yield self._peft
            return
        scales = {self._name_of(folder): scale for folder, scale in adapters}
        assert len(scales) == len(adapters), "the same adapter twice"
        model = self._peft
        assert model is not None
        model.base_model.set_adapter(list(scales))
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                for name, scale in scales.items():
                    layer.set_scale(name, scale)
        yield model

    def _name_of(self, folder: Path) -> str:
        name = self._names.get(folder)
        if name is None:
            name = self._names[folder] = f"a{len(self._names)}"
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.base, folder, adapter_name=name)
            else:
                result = self._peft.load_adapter(folder, adapter_name=name)
                assert not result.unexpected_keys, result.unexpected_keys
            self._peft.eval()
        return name


def round_experts(model: torch.nn.Module, quantization: str) -> None:
    """Give the experts, which bitsandbytes leaves alone, the numbers that the server's are worth
    (`tests/unit/model/test_expert_stacks.py` compares those with bitsandbytes')."""
    for module in model.modules():
        if not holds_experts(module):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name not in PROJECTIONS:
                continue
            weight = parameter.data.transpose(1, 2) if module.is_transposed else parameter.data
            worth = quantized(weight, quantization, double_quant=True).dense_weight()
            parameter.data.copy_(worth.transpose(1, 2) if module.is_transposed else worth)


def _exact_int8(module: Linear8bitLt) -> Callable[[torch.Tensor], torch.Tensor]:
    codes_OI, scale_O = module.weight.CB, module.weight.SCB
    weight_OI = codes_OI.float() * (scale_O.float() / 127).unsqueeze(1)
    # Not a closure: a copy of the module, whose bias somebody trains, must find its own.
    return partial(_multiply, module, weight_OI)


def _round_and_call(
    forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    return forward(rounded(x, FAR_8_BITS))


def _multiply(module: Linear8bitLt, weight_OI: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight_OI, module.bias)


def peft_logprobs(model_folder: Path, adapters: Adapters, token_ids: Sequence[int]) -> torch.Tensor:
    """One question to a fresh oracle; keep a `PeftOracle` where there are many."""
    return PeftOracle(model_folder).logprobs(adapters, token_ids)
