"""Adapters trained on the first Qwen, as files: its own formulas say what they do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE, inspect
from support.executor_driver import Ask, ExecutorDriver
from support.prompts import random_prompt
from unit.model.test_first_qwen import folder, load_folder, reference, weights

__all__ = ["folder"]


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_s_files_for_the_original(folder: Path, tmp_path: Path, dora: bool) -> None:
    """As PEFT saves them for the original's modules; plain and as a DoRA."""
    w = weights()
    generator = torch.Generator().manual_seed(6)
    names = ("c_attn", "attn.c_proj", "w1", "w2", "mlp.c_proj")
    paths = [p.removesuffix(".weight") for p in w if p.removesuffix(".weight").endswith(names)]
    tensors: dict[str, Tensor] = {}
    for path in paths:
        outputs, inputs = w[f"{path}.weight"].shape
        at = f"base_model.model.{path}"
        a_RI = torch.randn(4, inputs, generator=generator) / math.sqrt(inputs)
        tensors[f"{at}.lora_A.weight"] = a_RI
        tensors[f"{at}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator) * 0.5
        if dora:
            size_O = w[f"{path}.weight"].norm(dim=1)
            factor_O = 1 + 0.3 * torch.randn(outputs, generator=generator)
            tensors[f"{at}.lora_magnitude_vector"] = size_O * factor_O
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(tensors, adapter / WEIGHTS_FILE)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "use_dora": dora}
    (adapter / CONFIG_FILE).write_text(json.dumps({**config, "target_modules": list(names)}))

    def delta(path: str, x_TI: Tensor) -> Tensor:
        if path not in paths:
            return torch.zeros(())
        at = f"base_model.model.{path}"
        change_OI = 0.5 * tensors[f"{at}.lora_B.weight"] @ tensors[f"{at}.lora_A.weight"]
        if dora:
            whole_OI = w[f"{path}.weight"] + change_OI
            gain_O = tensors[f"{at}.lora_magnitude_vector"] / whole_OI.norm(dim=1)
            change_OI = gain_O[:, None] * whole_OI - w[f"{path}.weight"]
        return x_TI @ change_OI.T

    layout = load_folder(folder).layout
    facts = inspect(adapter, layout, 64)
    assert facts.target_modules == ("c_attn", "c_proj", "w1", "w2")
    driver = ExecutorDriver(folder)
    ids = random_prompt(30, 3)
    base, adapted = driver.score([Ask([], ids), Ask([(adapter, 1.0)], ids)])
    for found, change in ((base, None), (adapted, delta)):
        logprobs_TV = reference(w, ids, change).log_softmax(-1)
        expected = [float(logprobs_TV[t, token]) for t, token in enumerate(ids[1:])]
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-4
    assert max(abs(a - b) for a, b in zip(base, adapted, strict=True)) > 1.0
