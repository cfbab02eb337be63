"""An adapter beside its base, on examples that it did not learn."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lorry.training.rendering import LearnedTokens

_MOST = 64
"""Sequences that are compared."""

_SHOWN = 3
_NEW_TOKENS = 48
"""Prompts that both answer, and tokens of each answer."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What both say to a prompt, greedily."""

    prompt: str
    base: str
    adapter: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over learned tokens."""

    loss: float
    base_loss: float
    drift: float
    """Kullback-Leibler divergence of the adapter's next tokens from the base's, in nats a token."""
    ends: float
    """Share of the answers whose end is the likeliest token there."""
    answers: tuple[Answers, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def evaluate(model: Any, tokenizer: Any, sequences: Sequence[LearnedTokens]) -> Evaluation:
    """`model`: a PEFT model. `sequences`: at least one."""
    model.eval()
    loss = base_loss = drift = 0.0
    learned = ends = 0
    for one in sequences[:_MOST]:
        at = [place for place, marked in enumerate(one.learned) if marked and place > 0]
        targets_N = torch.tensor([one.ids[place] for place in at], device=model.device)
        own_NV = _logprobs(model, one, at, base=False)
        base_NV = _logprobs(model, one, at, base=True)
        loss += F.nll_loss(own_NV, targets_N, reduction="sum").item()
        base_loss += F.nll_loss(base_NV, targets_N, reduction="sum").item()
        drift += F.kl_div(base_NV, own_NV, reduction="sum", log_target=True).item()
        ends += int(own_NV[-1].argmax() == targets_N[-1])
        learned += len(at)
    return Evaluation(
        loss=loss / learned,
        base_loss=base_loss / learned,
        drift=drift / learned,
        ends=ends / len(sequences[:_MOST]),
        answers=tuple(_answers(model, tokenizer, one) for one in sequences[:_SHOWN]),
    )


def _logprobs(model: Any, tokens: LearnedTokens, at: list[int], *, base: bool) -> torch.Tensor:
    """Log-probabilities before the tokens at these places, [N, V] in float32."""
    ids_1T = torch.tensor([tokens.ids], device=model.device)
    with model.disable_adapter() if base else nullcontext():
        logits_1SV = model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T)).logits
    # Virtual tokens stand before the others.
    logits_TV = logits_1SV[0, -len(tokens.ids) :]
    return F.log_softmax(logits_TV[[place - 1 for place in at]].float(), dim=-1)


def _answers(model: Any, tokenizer: Any, tokens: LearnedTokens) -> Answers:
    prompt = list(tokens.ids[: max(1, tokens.learned.index(True))])
    said = []
    for base in (True, False):
        ids_1T = torch.tensor([prompt], device=model.device)
        with model.disable_adapter() if base else nullcontext():
            out_1T = model.generate(
                input_ids=ids_1T,
                attention_mask=torch.ones_like(ids_1T),
                max_new_tokens=_NEW_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
        new = out_1T[0].tolist()
        new = new[len(prompt) :] if new[: len(prompt)] == prompt else new
        said.append(tokenizer.decode(new, skip_special_tokens=True))
    return Answers(tokenizer.decode(prompt), *said)
