"""A baked model is PEFT's `merge_and_unload`, and transformers loads it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorry_adapters.errors import InvalidAdapter, ToolError
from lorry_adapters.tools.bake import bake
from support.peft_adapters import edit_config
from support.peft_oracle import peft_logprobs

IDS = [1, 40, 77, 9, 200, 31]


def logprobs(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([IDS])).logits[0].float(), dim=-1)


@pytest.mark.parametrize("scale", [1.0, 0.5, -0.25])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_answers_as_base_and_adapter_do(
    family: str, scale: float, tiny_model, peft_adapter, tmp_path: Path
) -> None:
    base, adapter = tiny_model(family), peft_adapter(family, "both_patterns_rslora")
    result = bake(base, adapter, scale, "float32", tmp_path / "out")
    expected = peft_logprobs(base, [(adapter, scale)], IDS)
    torch.testing.assert_close(logprobs(tmp_path / "out"), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logprobs(base)).abs().max() > 0.1
    assert result.modules > 0
    AutoTokenizer.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_head_that_is_the_embeddings_gets_weights_of_its_own(
    family: str, tiny_model, peft_adapter, tmp_path: Path
) -> None:
    base, adapter = tiny_model(family), peft_adapter(family, "head")
    bake(base, adapter, 1.0, "float32", tmp_path / "out")
    expected = peft_logprobs(base, [(adapter, 1.0)], IDS)
    torch.testing.assert_close(logprobs(tmp_path / "out"), expected, rtol=1e-4, atol=1e-4)


def test_the_weights_are_pefts_own(tiny_model, peft_adapter, tmp_path: Path) -> None:
    base, adapter = tiny_model("llama"), peft_adapter("llama", "plain")
    bake(base, adapter, 1.0, "float32", tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    found = ours.state_dict()
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[key], theirs[key]) for key in theirs)


def test_bfloat16_is_rounded_once(tiny_model, peft_adapter, tmp_path: Path) -> None:
    base, adapter = tiny_model("llama"), peft_adapter("llama", "plain")
    bake(base, adapter, 1.0, "float32", tmp_path / "whole")
    bake(base, adapter, 1.0, "bfloat16", tmp_path / "half")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="auto").state_dict()
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").state_dict()
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    assert all(torch.equal(half[key], whole[key].bfloat16()) for key in whole)


def test_another_bases_adapter_is_refused(tiny_model, peft_adapter, tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter):
        bake(tiny_model("gpt2"), peft_adapter("llama", "plain"), 1.0, "float32", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"init_lora_weights": "pissa"}, "PiSSA"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"target_modules": "all-linear"}, "lacks"),
        ({"target_modules": ["q_proj"]}, "no place"),
    ],
    ids=["pissa", "alora", "missing keys", "keys too many"],
)
def test_what_no_weights_could_hold_is_refused(
    change, said: str, tiny_model, peft_adapter, copied, tmp_path: Path
) -> None:
    folder = copied(peft_adapter("llama", "attention_only"))
    edit_config(folder, **change)
    with pytest.raises(InvalidAdapter, match=said):
        bake(tiny_model("llama"), folder, 1.0, "float32", tmp_path / "out")


def test_an_existing_folder_is_left_alone(tiny_model, peft_adapter, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(ToolError, match="not an empty folder"):
        bake(tiny_model("llama"), peft_adapter("llama", "plain"), 1.0, "float32", tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "mine"
