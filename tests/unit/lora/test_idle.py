"""What would be the base under another name is refused, whichever field or tensor makes it so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import inspect
from support import peft_made
from support.peft_adapters import edit_config
from support.peft_kinds import KINDS
from support.peft_made import load_base, prompt_logprobs

IDS = [1, 300, 40, 77, 9, 301, 31]
WEAK: Mapping[str, Mapping[str, Any]] = {
    "lora": {"lora_alpha": 0},
    "rslora": {"lora_alpha": 0},
    "lora_bias": {"lora_alpha": 0},
    "alora": {"lora_alpha": 0},
    # Of a base that has none.
    "bias=all": {"lora_alpha": 0},
    "bdlora": {"lora_alpha": 0},
    "velora": {"lora_alpha": 0},
    "rank_pattern": {"alpha_pattern": {".*": 0}},
    "embeddings target": {"lora_alpha": 0},
    "lm_head target": {"lora_alpha": 0},
    "layers_to_transform": {"lora_alpha": 1e-300},
    "loha": {"alpha": 0},
    "lokr": {"alpha": 0},
    "lokr, both decomposed": {"alpha_pattern": {".*": 0}},
    "fourierft": {"scaling": 0.0},
    "waveft": {"scaling": 0.0},
    "randlora": {"randlora_alpha": 0},
    "gralora": {"alpha": 0},
    "peanut": {"scaling": 0.0},
}
"""By kind, what of its config takes all its strength away."""
STRONG: Mapping[str, Mapping[str, Any]] = {
    "dora": {"lora_alpha": 0},
    "kasa": {"lora_alpha": 0},
    "modules_to_save=norm": {"lora_alpha": 0},
    "trainable_token_indices": {"lora_alpha": 0},
    "adalora": {"lora_alpha": 0},
    "lora": {"lora_alpha": -16},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 0}},
    "fourierft": {"scaling": -20.0},
}
"""What acts all the same: by magnitudes, by what stands in the base's place, in other modules."""
UNTRAINED: Mapping[str, tuple[str, float]] = {
    "ia3": ("ia3_l", 1.0),
    "vera": ("vera_lambda_b", 0.0),
    "shira": ("shira_weight", 0.0),
    "lokr": ("lokr_w1", 0.0),
    "loha": ("hada_w2_b", 0.0),
    "adalora": ("lora_E", 0.0),
    "waveft": ("waveft_spectrum", 0.0),
    "oft": ("oft_R", 0.0),
    "target_parameters": ("lora_B", 0.0),
}
"""By kind: what starts at which number."""


def family_of(kind: str) -> str:
    return "mixtral" if kind.startswith("target_parameters") else "llama"


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(kind: str, **config: Any) -> Path:
        family = family_of(kind)
        folder = tmp_path_factory.mktemp("idle") / "adapter"
        peft_made.make(KINDS[kind], family, load_base(tiny_model(family)), folder)
        edit_config(folder, **config)
        return folder

    return make


def problem(folder: Path, layout: BaseLayout) -> str:
    with pytest.raises(InvalidAdapter) as caught:
        inspect(folder, layout, 64)
    (found,) = caught.value.problems
    return found


@pytest.mark.parametrize("kind", WEAK)
def test_no_strength_is_refused(kind: str, made, tiny_model, llama: BaseLayout) -> None:
    folder = made(kind, **WEAK[kind])
    said = problem(folder, llama)
    assert said.startswith("the adapter changes nothing: ")
    if KINDS[kind].group == "LoRA":
        assert "make its strength zero in every module" in said
    base = load_base(tiny_model("llama"))
    without = prompt_logprobs(base, IDS)
    assert prompt_logprobs(PeftModel.from_pretrained(base, folder).eval(), IDS) == without


@pytest.mark.parametrize("kind", ["target_parameters", "target_parameters, router"])
def test_experts_of_no_strength_are_refused(kind: str, made, layout) -> None:
    said = problem(made(kind, lora_alpha=0), layout("mixtral"))
    assert "make its strength zero in every module" in said


@pytest.mark.parametrize("kind", STRONG)
def test_what_acts_without_that_strength_is_taken(
    kind: str, made, tiny_model, llama: BaseLayout
) -> None:
    folder = made(kind, **STRONG[kind])
    inspect(folder, llama, 64)
    base = load_base(tiny_model("llama"))
    without = prompt_logprobs(base, IDS)
    assert prompt_logprobs(PeftModel.from_pretrained(base, folder).eval(), IDS) != without


@pytest.mark.parametrize("kind", UNTRAINED)
def test_what_was_never_trained_is_refused(kind: str, made, layout) -> None:
    folder, (part, start) = made(kind), UNTRAINED[kind]
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    assert any(part in key for key in tensors)
    for key, tensor in tensors.items():
        if part in key:
            tensor.fill_(start)
    save_file(tensors, file)
    assert "changes nothing" in problem(folder, layout(family_of(kind)))


def test_one_module_that_acts_is_enough(made, llama: BaseLayout) -> None:
    folder = made("waveft")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    last = sorted(key for key in tensors if "waveft_spectrum" in key)[-1]
    for key, tensor in tensors.items():
        if "waveft_spectrum" in key and key != last:
            tensor.zero_()
    save_file(tensors, file)
    inspect(folder, llama, 64)
