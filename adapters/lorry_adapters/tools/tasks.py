"""One task's prompt out of an adapter that has several.

Multitask prompt tuning keeps one prompt for all tasks and two thin matrices for each, and a
request of PEFT's names its task. Here requests name adapters, so each task becomes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from lorry_adapters.lora.problems import shown
from lorry_adapters.tools.folder import ToolError

_OF_TASKS: Final = ("prefix_task_cols", "prefix_task_rows")


def one_task(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], task: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of `task` alone, counted from 0 as PEFT's `task_ids` are.

    Raises ToolError where there is no such task.
    """
    if config.get("peft_type") != "MULTITASK_PROMPT_TUNING":
        raise ToolError(
            f"this adapter is {shown(config.get('peft_type'))}: only multitask prompt tuning has "
            "several tasks (leave --task out)"
        )
    found = [tensors[key] for key in _OF_TASKS if key in tensors]
    sizes = {one.shape[0] if one.ndim else 0 for one in found}
    if len(sizes) > 1:
        raise ToolError(f"its tensors are of {' and of '.join(map(str, sorted(sizes)))} tasks")
    count = min(sizes, default=0)
    if not 0 <= task < count:
        raise ToolError(f"there is no task {task}: the file has {count}, counted from 0")
    alone = {key: one[task : task + 1] if key in _OF_TASKS else one for key, one in tensors.items()}
    return {**config, "num_tasks": 1}, alone
