"""The model as transformers itself runs it: every part by the attention that it would choose.

Its implementations do not always agree. Falcon with ALiBi, in transformers 5.23: the eager one
adds the distances twice, the other once, as the model was trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lorry.model.quiet import quiet

SAME = 0.05
"""Log-probabilities that differ by less were computed by the same formula."""

LENGTH = 8


@contextmanager
def plain(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` attends as transformers has it; afterwards every part as before."""
    before = [(config, config._attn_implementation) for config, _ in _parts(model)]
    choose_plain(model)
    try:
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


def choose_plain(model: PreTrainedModel) -> None:
    """From now on every part attends as transformers would have it."""
    for config, part in _parts(model):
        with quiet():
            # Not by `set_attn_implementation`, which some classes ignore.
            config._attn_implementation_internal = part.get_correct_attn_implementation(None)


def is_plain(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether the attention that is set now answers as transformers' own choice does."""
    ids_1T = torch.arange(LENGTH, device=device).unsqueeze(0)
    now_TV = _logprobs(model, ids_1T)
    with plain(model):
        then_TV = _logprobs(model, ids_1T)
    return bool((now_TV - then_TV).abs().amax() < SAME)


def _logprobs(model: PreTrainedModel, ids_1T: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids_1T, use_cache=False).logits
    return logits.float().log_softmax(-1)


def _parts(model: PreTrainedModel) -> list[tuple[PretrainedConfig, PreTrainedModel]]:
    """Every config once, with the module that it is the config of."""
    found: dict[int, tuple[PretrainedConfig, PreTrainedModel]] = {}
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            found.setdefault(id(module.config), (module.config, module))
    return list(found.values())
