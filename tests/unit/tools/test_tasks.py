"""A task of an adapter that has several, as one of its own: what PEFT answers for that task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import MultitaskPromptTuningConfig, PeftConfig, PeftModel, PolyConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lorry_adapters.errors import InvalidAdapter, ToolError
from lorry_adapters.tools.convert import convert
from lorry_adapters.tools.tasks import one_task

IDS = torch.tensor([[5, 9, 31, 7]])
CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "prompt": lambda: MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=3, num_ranks=2
    ),
    "poly": lambda: PolyConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], r=4, n_tasks=3
    ),
    "poly, split": lambda: PolyConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "up_proj"],
        r=4,
        n_tasks=3,
        n_skills=5,
        n_splits=2,
        modules_to_save=["lm_head"],
    ),
}


@pytest.fixture
def three(request: pytest.FixtureRequest, tiny_model, tmp_path: Path) -> tuple[Path, PeftModel]:
    """An adapter of three tasks, and the model that it was saved from."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    torch.manual_seed(0)
    model = get_peft_model(base, CONFIGS[request.param]())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.5
    model.eval().save_pretrained(tmp_path / "three")
    return tmp_path / "three", model


@pytest.mark.parametrize("three", CONFIGS, indirect=True)
@pytest.mark.parametrize("task", [0, 2])
def test_a_task_alone_answers_as_among_others(task: int, three, tiny_model, tmp_path) -> None:
    folder, model = three
    convert(folder, task=task).save(tmp_path / "one")
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    alone = PeftModel.from_pretrained(base, tmp_path / "one").eval()
    prompts = model.active_peft_config.is_prompt_learning
    more = {"task_ids": torch.tensor([0])} if prompts else {}
    with torch.inference_mode():
        expected = model(input_ids=IDS, task_ids=torch.tensor([task])).logits
        found = alone(input_ids=IDS, **more).logits
        other = model(input_ids=IDS, task_ids=torch.tensor([1])).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, other, atol=1e-2)


@pytest.mark.parametrize("three", ["prompt", "poly"], indirect=True)
@pytest.mark.parametrize("task", [3, -1])
def test_a_task_that_is_not_there(task: int, three) -> None:
    with pytest.raises(ToolError, match=f"no task {task}: the file has 3, counted from 0"):
        convert(three[0], task=task)


def test_tensors_that_do_not_go_together_are_told() -> None:
    tensors = {
        "base_model.model.x.poly_lora_A": torch.ones(1, 4, 8, 2),
        "base_model.model.x.poly_lora_B": torch.ones(1, 3, 2, 8),
        "base_model.model.x.poly_router.module_logits": torch.ones(2, 4),
        "base_model.model.y.poly_lora_A": torch.ones(1, 4, 8, 2),
    }
    with pytest.raises(InvalidAdapter) as caught:
        one_task({"peft_type": "POLY"}, tensors, 0)
    first, second = caught.value.problems
    assert "x': its tensors' shapes do not go together" in first
    assert "y' has no poly_lora_B" in second


def test_other_methods_have_no_tasks(peft_adapter) -> None:
    with pytest.raises(ToolError, match="'LORA': multitask prompt tuning and Poly"):
        convert(peft_adapter("llama", "plain"), task=0)
