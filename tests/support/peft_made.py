"""Adapters of every kind, made by PEFT, saved by PEFT, loud; and PEFT's word on them.

The model that was saved is the oracle as well: what its file lacks would show.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, PreTrainedModel

from support import tiny
from support.kind import Kind, Strength
from support.peft_adapters import LOUDNESS
from support.tokenizer import VOCAB_SIZE

ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Made:
    """A saved adapter and the PEFT model that it was saved from."""

    folder: Path
    kind: Kind
    model: PeftModel

    def logprobs(self, token_ids: Sequence[int], scale: float = 1.0) -> list[float]:
        """The logprob of every token but the first, given those before it: T - 1 numbers."""
        with _strength(self.model, self.kind.strength, scale):
            return prompt_logprobs(self.model, token_ids)


@contextmanager
def _strength(model: PeftModel, strength: Strength, scale: float) -> Iterator[None]:
    """`scale` times the trained strength, for as long as it lasts.

    PEFT's own `set_scale` sets `scaling` to the same, but for AdaLoRA, whose rank it would
    divide by twice.
    """
    if scale == 1.0:
        yield
        return
    assert strength is not Strength.NONE
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    trained = [dict(getattr(layer, "scaling", {})) for layer in layers]
    for layer, own in zip(layers, trained, strict=True):
        if strength is Strength.DISTANCE:
            layer.forward = _part_of_the_way(layer, scale)  # type: ignore[method-assign]
        elif ADAPTER in own:
            layer.scaling[ADAPTER] = own[ADAPTER] * scale
    try:
        yield
    finally:
        for layer, own in zip(layers, trained, strict=True):
            if strength is Strength.DISTANCE:
                del layer.forward
            elif ADAPTER in own:
                layer.scaling[ADAPTER] = own[ADAPTER]


def _part_of_the_way(layer: BaseTunerLayer, scale: float) -> Callable[..., torch.Tensor]:
    whole = layer.forward

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        base = layer.base_layer(*args, **kwargs)
        there: torch.Tensor = whole(*args, **kwargs)
        return base + scale * (there - base)

    return forward


@torch.inference_mode()
def prompt_logprobs(model: torch.nn.Module, token_ids: Sequence[int]) -> list[float]:
    """T - 1 numbers. One sequence, no cache, no batch."""
    ids_T = torch.tensor([list(token_ids)])
    logits = model(input_ids=ids_T, attention_mask=torch.ones_like(ids_T)).logits[0]
    # Virtual tokens have logits of their own, in front.
    table_TV = torch.log_softmax(logits[-len(token_ids) :].float(), dim=-1)
    targets = torch.tensor(list(token_ids[1:]))
    return table_TV[:-1].gather(1, targets[:, None])[:, 0].tolist()  # type: ignore[no-any-return]


def load_base(folder: Path, **options: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **options
    ).eval()


def make(kind: Kind, family: str, base: PreTrainedModel, folder: Path, *, seed: int = 1) -> Made:
    """Builds the kind on a copy of `base`, fills it, saves it in `folder`.

    Raises whatever PEFT raises where it cannot build the kind on that family.
    """
    with _quietly(), torch.random.fork_rng():
        torch.manual_seed(seed)
        config = kind.config(tiny.family(family))
        own = copy.deepcopy(base)
        _prepare(own, config)
        model = get_peft_model(own, config)
        start = folder.parent / "start"
        if kind.converted:
            # As PEFT's own documentation has it: what is saved now must not be taken for a
            # start of that name again.
            model.peft_config[ADAPTER].init_lora_weights = True
            model.save_pretrained(start)
        fill(model, kind.noise, seed=seed, from_start=config_changes_base(config))
        model.eval()
        more = {"path_initial_model_for_weight_conversion": str(start)} if kind.converted else {}
        model.save_pretrained(folder, **more)
        if kind.converted:
            # The model in hand lies on a base without the start; the file is for the base itself.
            model = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    model.requires_grad_(False)
    return Made(folder, kind, model)


def config_changes_base(config: PeftConfig) -> bool:
    return isinstance(getattr(config, "init_lora_weights", None), str) and (
        config.init_lora_weights not in ("gaussian", "orthogonal")
    )


@torch.no_grad()
def fill(model: PeftModel, noise: float, *, seed: int, from_start: bool = False) -> None:
    """Moves every trained number away from its start.

    A LoRA's two matrices are drawn so that a module's delta is about half as large as the
    module's own output, whatever rank and alpha. All else (magnitudes, biases, factors,
    embeddings, whole modules) gets `noise` added, relative to what is there.
    `from_start`: LoRA's matrices are moved, not drawn, as a start taken from the base means
    something only together with the base that is left.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    drawn: set[int] = set()
    for _, layer in sorted(model.named_modules(), key=lambda item: item[0]):
        if isinstance(layer, LoraLayer) and not from_start:
            drawn |= _draw_lora(layer, generator)
    for _, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        if parameter.requires_grad and id(parameter) not in drawn:
            size = float(parameter.std()) if parameter.numel() > 1 else 0.0
            spread = noise * (size if size > 1e-3 and parameter.ndim > 1 else 1.0)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)


def _draw_lora(layer: LoraLayer, generator: torch.Generator) -> set[int]:
    if isinstance(layer, AdaLoraLayer):
        return _draw_adalora(layer, generator)
    pairs = [(a.weight, layer.lora_B[name].weight, name) for name, a in layer.lora_A.items()]
    pairs += [(a, layer.lora_embedding_B[name], name) for name, a in layer.lora_embedding_A.items()]
    for a_RI, b_OR, name in pairs:
        rank, fan_in = a_RI.shape
        # An embedding picks one column of A; a linear layer sums over all of them.
        a_std = 1.0 if name in layer.lora_embedding_A else 1 / math.sqrt(fan_in)
        b_std = LOUDNESS / (math.sqrt(rank) * layer.scaling[name])
        a_RI.copy_(torch.randn(a_RI.shape, generator=generator) * a_std)
        b_OR.copy_(torch.randn(b_OR.shape, generator=generator) * b_std)
    return {id(tensor) for pair in pairs for tensor in pair[:2]}


def _draw_adalora(layer: AdaLoraLayer, generator: torch.Generator) -> set[int]:
    drawn = set()
    for name, a_RI in layer.lora_A.items():
        b_OR, e_R1 = layer.lora_B[name], layer.lora_E[name]
        rank, fan_in = a_RI.shape
        b_std = LOUDNESS * math.sqrt(rank) / layer.scaling[name]
        a_RI.copy_(torch.randn(a_RI.shape, generator=generator) / math.sqrt(fan_in))
        b_OR.copy_(torch.randn(b_OR.shape, generator=generator) * b_std)
        e_R1.copy_(1 + 0.5 * torch.randn(e_R1.shape, generator=generator))
        drawn |= {id(a_RI), id(b_OR), id(e_R1)}
    return drawn


def _prepare(model: PreTrainedModel, config: PeftConfig) -> None:
    """What some starts want to know of the base before they are made."""
    start = getattr(config, "init_lora_weights", None)
    if start not in ("corda", "lora_ga"):
        return
    ids = torch.randint(0, VOCAB_SIZE, (4, 32), generator=torch.Generator().manual_seed(5))
    if start == "corda":
        preprocess_corda(model, config, run_model=lambda: [model(row[None]) for row in ids])
        return
    model.requires_grad_(True)
    preprocess_loraga(model, config, lambda: model(input_ids=ids, labels=ids).loss.backward())
    model.zero_grad()


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The same numbers in plain fp32 linears, in place of bitsandbytes' own.

    PEFT's layers that read the base's weight (DoRA's norm, HiRA's product) get it wrong once
    bitsandbytes has packed a 4-bit weight for a CPU, which its first forward pass does.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, Linear4bit | Linear8bitLt):
            plain = torch.nn.Linear(
                module.in_features, module.out_features, bias=module.bias is not None
            )
            plain.weight.data = _worth(module)
            if module.bias is not None:
                plain.bias.data = module.bias.data.float()
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, plain)
    # PEFT would choose its layers by them.
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    return model


def _worth(module: Linear4bit | Linear8bitLt) -> torch.Tensor:
    weight = module.weight
    if isinstance(module, Linear4bit):
        return dequantize_4bit(weight.data, weight.quant_state).float()  # type: ignore[no-any-return]
    return weight.CB.float() * (weight.SCB.float() / 127).unsqueeze(1)  # type: ignore[no-any-return]
