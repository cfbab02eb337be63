"""A task of a multitask prompt as an adapter: what PEFT answers for that task, without a task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import MultitaskPromptTuningConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from lorry_adapters.tools.convert import convert
from lorry_adapters.tools.folder import ToolError

IDS = torch.tensor([[5, 9, 31, 7]])


@pytest.fixture
def three(tiny_model, tmp_path: Path) -> tuple[Path, PeftModel]:
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    config = MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=3, num_ranks=2
    )
    torch.manual_seed(0)
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    model.eval().save_pretrained(tmp_path / "three")
    return tmp_path / "three", model


@pytest.mark.parametrize("task", [0, 2])
def test_a_task_alone_answers_as_it_did_among_others(
    task: int, three, tiny_model, tmp_path
) -> None:
    folder, model = three
    convert(folder, task=task).save(tmp_path / "one")
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    alone = PeftModel.from_pretrained(base, tmp_path / "one").eval()
    with torch.inference_mode():
        expected = model(input_ids=IDS, task_ids=torch.tensor([task])).logits
        found = alone(input_ids=IDS, task_ids=torch.tensor([0])).logits
        other = model(input_ids=IDS, task_ids=torch.tensor([1])).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, other, atol=1e-2)


@pytest.mark.parametrize("task", [3, -1])
def test_a_task_that_is_not_there(task: int, three) -> None:
    with pytest.raises(ToolError, match=f"no task {task}: the file has 3, counted from 0"):
        convert(three[0], task=task)


def test_other_methods_have_no_tasks(peft_adapter) -> None:
    with pytest.raises(ToolError, match="'LORA': only multitask prompt tuning"):
        convert(peft_adapter("llama", "plain"), task=0)
