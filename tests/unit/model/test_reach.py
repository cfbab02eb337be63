"""Which tokens a module is handed decides what an adapter may change of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lorry.model.paths import first_pass
from lorry.model.reach import EVERYWHERE
from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import weights
from support import decoders, peft_adapters
from support.decoders import Decoder
from support.executor_driver import Ask, ExecutorDriver, load_tiny
from support.prompts import random_prompt


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2", "falcon"])
def test_most_linears_are_handed_the_step_s_tokens(model_type: str, tmp_path: Path) -> None:
    loaded = load_tiny(decoders.save(Decoder(model_type), tmp_path))
    reach = first_pass(loaded).reach
    assert reach.head == {loaded.layout.output_embedding}
    assert reach.apart == EVERYWHERE.apart == frozenset()


def test_what_lies_above_the_cut(tmp_path: Path) -> None:
    loaded = load_tiny(decoders.save(Decoder("bert"), tmp_path))
    head = "cls.predictions"
    assert first_pass(loaded).reach.head == {
        head,
        f"{head}.decoder",
        f"{head}.transform.dense",
        f"{head}.transform.LayerNorm",
    }


@pytest.mark.parametrize(
    ("model_type", "module"),
    [
        # Over the values of the whole past; a router's pair; the first token alone.
        ("doge", "model.layers.1.self_attn.dt_proj"),
        ("llama4_text", "model.layers.0.feed_forward.router"),
        ("phimoe", "model.layers.0.mlp.router"),
        ("big_bird", "bert.pooler"),
    ],
)
def test_an_adapter_of_what_is_handed_others_is_refused(
    model_type: str, module: str, tmp_path: Path
) -> None:
    """Doge's delta went to the wrong tokens; the others failed in the step."""
    decoders.save(Decoder(model_type), tmp_path / "base")
    ours = ExecutorDriver(tmp_path / "base")
    layout = ours.executor.paths.layout
    assert module in layout.apart
    query = next(name for name in layout.modules if name.endswith(("q_proj", "self.query")))
    for name, path in (("apart", module), ("fine", query)):
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
            LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[path]),
        )
        peft_adapters.fill(model, seed=1)
        model.save_pretrained(tmp_path / name)
    with pytest.raises(InvalidAdapter, match=rf"do not receive a step's tokens .*{module}"):
        weights.inspect(tmp_path / "apart", layout, 8)
    with pytest.raises(InvalidAdapter):
        weights.load(tmp_path / "apart", "sha256:0", layout)
    assert weights.inspect(tmp_path / "fine", layout, 8).rank == 2
    ours.score([Ask([(tmp_path / "fine", 1.0)], random_prompt(9, 1))])
