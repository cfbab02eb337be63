"""Extracts one task from an adapter that has several.

A request of PEFT's names its task. Here requests name adapters, so each task becomes one:

- multitask prompt tuning keeps one prompt for all tasks and two low-rank matrices for each;
- Poly keeps a few pairs of matrices for each linear and says, of each task, how much of each
  it takes. Of one task that is one pair, A' = sum of w A and B' = sum of w B, and so a plain
  LoRA: w are the sigmoids of the task's logits, divided by their sum (arXiv:2202.13914).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from lorry_adapters.errors import InvalidAdapter, Problem, Remedy, ToolError
from lorry_adapters.lora.methods.lora_method import LORA
from lorry_adapters.lora.methods.prompt_tuning import MULTITASK
from lorry_adapters.lora.methods.refused import POLY
from lorry_adapters.lora.problems import shown

_PROMPT: Final = ("prefix_task_cols", "prefix_task_rows")
_A: Final = ".poly_lora_A"
_B: Final = ".poly_lora_B"
_LOGITS: Final = ".poly_router.module_logits"
_OF_POLY: Final = frozenset({"init_weights", "n_skills", "n_splits", "n_tasks", "poly_type"})
_EPSILON: Final = 1e-12
"""PEFT's, of the sum of weights."""

Adapter = tuple[dict[str, Any], dict[str, Tensor]]
"""A config, and tensors by key."""


def one_task(config: Mapping[str, Any], tensors: Mapping[str, Tensor], task: int) -> Adapter:
    """The config and the tensors of `task` alone, counted from 0 as PEFT's `task_ids` are.

    Raises ToolError where there is no such task, InvalidAdapter where tensors do not fit.
    """
    match config.get("peft_type"):
        case MULTITASK.name:
            _require(task, [tensors[key] for key in _PROMPT if key in tensors])
            return {**config, "num_tasks": 1}, {
                key: one[task : task + 1] if key in _PROMPT else one for key, one in tensors.items()
            }
        case POLY.name:
            _require(task, [one for key, one in tensors.items() if key.endswith(_LOGITS)])
            return _as_lora(config), _pairs(tensors, task)
        case other:
            raise ToolError(
                Problem(
                    f"this adapter is {shown(other)}: multitask prompt tuning and Poly have "
                    "several tasks",
                    Remedy.LEAVE_OUT,
                    argument="task",
                )
            )


def _require(task: int, of_tasks: list[Tensor]) -> None:
    sizes = {one.shape[0] if one.ndim else 0 for one in of_tasks}
    if len(sizes) > 1:
        raise ToolError(f"its tensors are of {' and of '.join(map(str, sorted(sizes)))} tasks")
    count = min(sizes, default=0)
    if not 0 <= task < count:
        raise ToolError(f"there is no task {task}: the file has {count}, counted from 0")


def _as_lora(config: Mapping[str, Any]) -> dict[str, Any]:
    """Poly divides by the rank, and has no alpha."""
    rest = {key: value for key, value in config.items() if key not in _OF_POLY}
    r = config.get("r", 8)
    return {**rest, "peft_type": LORA.name, "r": r, "lora_alpha": 1, "bias": "none"}


def _pairs(tensors: Mapping[str, Tensor], task: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    problems = []
    for key, one in tensors.items():
        module = key.removesuffix(_A)
        if key.endswith((_B, _LOGITS)):
            continue
        if module == key:
            found[key] = one
            continue
        b_QSRO, logits_TX = tensors.get(f"{module}{_B}"), tensors.get(f"{module}{_LOGITS}")
        if b_QSRO is None or logits_TX is None:
            problems.append(f"{shown(module)} has no {_B[1:]} or no {_LOGITS[1:]}")
            continue
        try:
            a_RI, b_OR = _pair(one, b_QSRO, logits_TX[task])
        except (RuntimeError, ValueError):
            problems.append(f"{shown(module)}: its tensors' shapes do not go together")
            continue
        found[f"{module}.lora_A.weight"], found[f"{module}.lora_B.weight"] = a_RI, b_OR
    if problems:
        raise InvalidAdapter(problems)
    return found


def _pair(a_QSIR: Tensor, b_QSRO: Tensor, logits_X: Tensor) -> tuple[Tensor, Tensor]:
    """Q splits of the inputs and of the outputs, S pairs to mix for each."""
    splits, skills, _, rank = a_QSIR.shape
    weight_QS = torch.sigmoid(logits_X.float()).view(splits, skills)
    weight_QS = weight_QS / (weight_QS.sum(1, keepdim=True) + _EPSILON)
    a_QIR = torch.einsum("qs,qsir->qir", weight_QS, a_QSIR.float())
    b_QRO = torch.einsum("qs,qsro->qro", weight_QS, b_QSRO.float())
    a_RI = a_QIR.reshape(-1, rank).T
    b_OR = b_QRO.transpose(0, 1).reshape(rank, -1).T
    return a_RI.to(a_QSIR.dtype).contiguous(), b_OR.to(b_QSRO.dtype).contiguous()
