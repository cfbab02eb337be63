"""Makes the golden files beside it: bottleneck adapters saved by AdapterHub's own library.

`adapters` asks for an older transformers than this project's, so it is run by hand, in an
environment of its own (adapters 1.3.0, transformers 4.57.6, torch 2.13):

    python make.py MODELS

MODELS holds the tiny models of `support.tiny`, one folder a family. Each golden folder has
what `save_adapter` wrote and `logprobs.json`: the prompt and two greedy tokens, and the
logprobs of all but the first, by the base, by the adapter, and by it at half the strength
(half of what its last linear gives).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import adapters
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
PROMPT = "The lorry waited at the gate with its lights on."
TOKENS = 2

CASES: dict[str, tuple[str, Any]] = {
    "llama-pfeiffer": ("llama", adapters.SeqBnConfig(reduction_factor=16)),
    "llama-houlsby": (
        "llama",
        adapters.DoubleSeqBnConfig(reduction_factor={"0": 8, "default": 16}, scaling="learned"),
    ),
    "llama-parallel": ("llama", adapters.ParBnConfig(reduction_factor=16)),
    "llama-adapterplus": (
        "llama",
        adapters.AdapterPlusConfig(reduction_factor=16, stochastic_depth=0.0),
    ),
    "llama-everywhere": (
        "llama",
        adapters.SeqBnConfig(
            mh_adapter=True, reduction_factor=16, non_linearity="leakyrelu", leave_out=[0]
        ),
    ),
    "mistral-pfeiffer": ("mistral", adapters.SeqBnConfig(reduction_factor=16)),
    "gpt2-pfeiffer": ("gpt2", adapters.SeqBnConfig(reduction_factor=16, mh_adapter=True)),
    "gpt2-houlsby": ("gpt2", adapters.DoubleSeqBnConfig(reduction_factor=16)),
    "gpt2-parallel": (
        "gpt2",
        adapters.ParBnConfig(reduction_factor=16, mh_adapter=True, non_linearity="tanh"),
    ),
}


@torch.inference_mode()
def answered(model: Any, prompt: list[int]) -> dict[str, list[Any]]:
    ids = list(prompt)
    for _ in range(TOKENS):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    table = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    logprobs = [float(table[at, ids[at + 1]]) for at in range(len(ids) - 1)]
    return {"ids": ids, "logprobs": logprobs}


def make(case: str, models: Path) -> None:
    family, config = CASES[case]
    model = AutoModelForCausalLM.from_pretrained(
        models / family, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    prompt = Tokenizer.from_file(str(models / family / "tokenizer.json")).encode(PROMPT).ids
    base = answered(model, prompt)
    adapters.init(model)
    model.add_adapter("golden", config=config)
    model.set_active_adapters("golden")
    generator = torch.Generator().manual_seed(len(case))
    mine = [(key, value) for key, value in model.named_parameters() if ".golden." in key]
    for key, value in mine:
        width = value.shape[-1] if value.dim() == 2 else 1
        size = 0.7 / width**0.5 if "weight" in key else 0.3
        value.data.add_(torch.randn(value.shape, generator=generator) * size)
    folder = HERE / case
    model.save_adapter(str(folder), "golden", with_head=False, use_safetensors=True)
    # The library writes the path where the model lay.
    written = json.loads((folder / "adapter_config.json").read_text())
    text = json.dumps({**written, "model_name": family}, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n")
    full = answered(model, prompt)
    for key, value in mine:
        if "adapter_up" in key:
            value.data.mul_(0.5)
    numbers = {"base": base, "full": full, "half": answered(model, prompt)}
    (folder / "logprobs.json").write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    for name in CASES:
        make(name, Path(sys.argv[1]))
