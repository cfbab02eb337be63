"""A tiny decoder through the real loader, first pass, self-check and executor, and through
transformers' own forward pass, which nothing here has touched: how far the two lie apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from lorry.errors import LorryError
from lorry_adapters.errors import AdapterError
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.parameters import STACKED
from support import peft_adapters
from support.executor_driver import Ask, ExecutorDriver, drawn, load_tiny, token_ids
from support.prompts import random_prompt

LENGTHS = (61, 47, 26)
"""Tokens of the prompts: the longest is three times as long as any limit of a tiny decoder."""

PIECES = (7, 11)
"""Tokens that a step reads of a prompt alone, and of each of several."""

SPARED = {"phimoe": 3}
"""Tokens of a prompt that may be any distance apart, where experts are chosen by rounded numbers. 1
else. PhiMoE's parts jump as well where a score is about a given part below the largest."""

DRAWN = 4
"""Tokens of an answer."""


class Way(StrEnum):
    PACKED = "packed"
    PADDED = "padded"
    COMPILED = "compiled"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    way: Way
    reason: str = ""
    error: float = 0.0
    """Largest difference of a log-probability."""


class Oracle:
    """One sequence at a time, whole, by the attention that transformers chooses."""

    def __init__(self, folder: Path, quantization: str = "none") -> None:
        if quantization == "none":
            self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        else:
            # The same integers, which the runner's own modules hold.
            self.model = load_tiny(folder, quantization=quantization).model
            for part in self.model.modules():
                if isinstance(part, PreTrainedModel):
                    name = part.get_correct_attn_implementation(None)
                    part.config._attn_implementation_internal = name
        self.model.eval()

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """Of every token but the first."""
        logits = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
        # CTRL and XLNet have a dimension of their own.
        table_TV = logits.reshape(len(ids), -1).float().log_softmax(-1)
        return [float(table_TV[i, token]) for i, token in enumerate(ids[1:])]


def start(
    folder: Path, quantization: str = "none", kernels: str = "torch"
) -> ExecutorDriver | Outcome:
    """What a server would have when its self-check is over, or why it would not start."""
    try:
        return ExecutorDriver(folder, quantization=quantization, kernels=kernels, is_checked=True)
    except LorryError as error:
        return Outcome(Way.REFUSED, str(error))


def examine(folder: Path, quantization: str = "none", kernels: str = "torch") -> Outcome:
    """The base: a prompt alone in pieces, several in one batch, and answers to them."""
    ours = start(folder, quantization, kernels)
    if isinstance(ours, Outcome):
        return ours
    theirs = Oracle(folder, quantization)
    prompts = prompts_for(ours)
    asks = [Ask((), prompt) for prompt in prompts]
    wanted = [theirs.logprobs(prompt) for prompt in prompts]
    # A rounding makes the other choice where two experts' scores are almost equal.
    tied = quantization != "none" and bool(ours.loaded.layout.parameters)
    spared = (SPARED.get(ours.loaded.config.model_type) or 1) if tied else 0
    worst = apart(ours.score(asks[:1], chunk=PIECES[0])[0], wanted[0], spared)
    for mine, want in zip(ours.score(asks, chunk=PIECES[1]), wanted, strict=True):
        worst = max(worst, apart(mine, want, spared))
    for prompt, results in zip(prompts, ours.greedy(asks, DRAWN, chunk=PIECES[1]), strict=True):
        want = theirs.logprobs([*prompt, *token_ids(results)])[-DRAWN:]
        worst = max(worst, apart([one.logprob for one in drawn(results)], want))
    paths = ours.executor.paths
    way = Way(paths.row_layout if paths.compiled is None else paths.compiled.name)
    ours.close()
    return Outcome(way, error=worst)


def examine_adapter(folder: Path, adapter: Path, *, experts: bool = False) -> Outcome:
    """A LoRA of PEFT's on every linear, or on the experts' parameters: alone, and in one batch
    with the base and with itself at half its strength."""
    ours = start(folder)
    if isinstance(ours, Outcome):
        return ours
    try:
        made = make_adapter(folder, adapter, ours.loaded.layout if experts else None)
    except Exception as error:  # noqa: BLE001 - whatever PEFT raises where it cannot
        return Outcome(Way.REFUSED, f"PEFT: {str(error).strip() or repr(error)}")
    prompts, scales = prompts_for(ours), (1.0, 0.0, 0.5)
    asks = [
        Ask([(adapter, scale)] if scale else (), prompt)
        for prompt, scale in zip(prompts, scales, strict=True)
    ]
    try:
        alone = ours.score(asks[:1], chunk=PIECES[0])[0]
    except AdapterError as error:
        return Outcome(Way.REFUSED, str(error))
    theirs = Oracle.__new__(Oracle)
    theirs.model = made
    wanted = []
    for prompt, scale in zip(prompts, scales, strict=True):
        for module in made.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", scale)
        wanted.append(theirs.logprobs(prompt))
    worst = apart(alone, wanted[0])
    for mine, want in zip(ours.score(asks, chunk=PIECES[1]), wanted, strict=True):
        worst = max(worst, apart(mine, want))
    return Outcome(Way(ours.executor.paths.row_layout), error=worst)


def make_adapter(folder: Path, adapter: Path, layout: BaseLayout | None) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = partial(LoraConfig, task_type="CAUSAL_LM", r=4, lora_alpha=8)
    if layout is None:
        made = get_peft_model(base, config(target_modules="all-linear"))
    else:
        names = [n for n, p in layout.parameters.items() if p.shape.kind in STACKED]
        if not names:
            raise LookupError("it has no experts' parameters")
        made = get_peft_model(base, config(target_modules=[], target_parameters=names))
    peft_adapters.fill(made, seed=1)
    made.save_pretrained(adapter, save_embedding_layers=False)
    return made.eval()


def prompts_for(ours: ExecutorDriver) -> list[list[int]]:
    longest = ours.loaded.max_model_len - DRAWN
    return [random_prompt(min(length, longest), length) for length in LENGTHS]


def apart(mine: Sequence[float], theirs: Sequence[float], spared: int = 0) -> float:
    """The largest difference, but for `spared` ones; infinite where there is none to be had."""
    off = [abs(a - b) for a, b in zip(mine, theirs, strict=True)]
    return sorted(off)[-1 - spared] if all(one == one for one in off) else float("inf")
