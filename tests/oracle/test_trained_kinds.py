"""On the real base: adapters of several families, trained by the samples' recipe, do what they
were trained for, and the base does not.

`adapters/samples/recipe/train.py pirate --kind KIND` made those in `trained/`; plain LoRA and
rsLoRA are samples themselves. One batch, beside the base, as the server runs it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lorry.model.compiled import library
from support.quality import base_of_run
from support.stepped import Ask, House

TRAINED = Path(__file__).parent / "trained"
SAMPLES = Path(__file__).resolve().parents[2] / "adapters" / "samples"
TABLE = {one["name"]: one for one in json.loads((SAMPLES / "samples.json").read_text())["samples"]}
FOLDERS = {
    "LoRA": SAMPLES / "pirate",
    "rsLoRA": SAMPLES / "sentiment",
    **{path.name.removeprefix("pirate-"): path for path in sorted(TRAINED.iterdir())},
}
TOKENS = 48


def test_the_families_are_what_they_say() -> None:
    configs: dict[str, dict[str, Any]] = {
        name: json.loads((folder / "adapter_config.json").read_text())
        for name, folder in FOLDERS.items()
    }
    kinds = {
        (one["peft_type"], bool(one.get("use_rslora")), bool(one.get("use_dora")))
        for one in configs.values()
    }
    assert kinds == {
        ("LORA", False, False),
        ("LORA", True, False),
        ("LORA", False, True),
        ("IA3", False, False),
        ("PROMPT_TUNING", False, False),
    }
    assert len(FOLDERS) == len(kinds)


def test_each_does_what_it_was_trained_for(pytestconfig: pytest.Config) -> None:
    base = base_of_run(pytestconfig)
    try:
        library.find()
        kernels = "compiled"
    except library.Missing:
        kernels = "torch"
    house = House(base, quantization="int8", kernels=kernels)
    tokenizer = AutoTokenizer.from_pretrained(base)
    asked = []
    for name, folder in FOLDERS.items():
        sample = TABLE.get(folder.name, TABLE["pirate"])
        for demo in sample["demos"][:2]:
            asked.append((name, folder, demo, sample["expect"]))
    ids = [tokenizer(demo)["input_ids"] for _, _, demo, _ in asked]
    adapted = [
        Ask(one, ((folder, 1.0),)) for one, (_, folder, _, _) in zip(ids, asked, strict=True)
    ]
    answers = house.run([*adapted, *map(Ask, ids)], TOKENS, prompt_logprobs=None)
    texts = [until_end(tokenizer, answer.tokens) for answer in answers]
    for (name, _, demo, expect), mine, plain in zip(
        asked, texts[: len(asked)], texts[len(asked) :], strict=True
    ):
        assert re.search(expect, mine), f"{name}, {demo!r}: {mine!r}"
        assert not re.search(expect, plain), f"the base, {demo!r}: {plain!r}"


def until_end(tokenizer: Any, tokens: list[int]) -> str:
    """The text before the first token that ends one."""
    end = tokenizer.eos_token_id
    kept = tokens[: tokens.index(end)] if end in tokens else tokens
    return str(tokenizer.decode(kept))
