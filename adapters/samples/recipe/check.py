"""See what the samples do: base against adapter on every demo prompt of samples.json, greedily.

`python check.py [NAME ...] [--base FOLDER_OR_ALIAS] [--quantize none int8 nf4] [--json FILE]`
prints each pair of outputs and ends with status 1 if an adapter's output misses its `expect`
pattern or the base's meets it. Each prompt goes in as raw text and through the chat template.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from base import ALIAS, base_folder
from peft import PeftModel
from prompts import chat_prompt
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

SAMPLES = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one prompt gave, without and with the adapter."""

    name: str
    quantize: str
    form: str
    prompt: str
    base: str
    adapter: str
    expected: bool


def quantization(kind: str) -> dict[str, Any]:
    """Arguments of from_pretrained for one of none, int8, nf4."""
    configs = {
        "none": None,
        "int8": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    }
    config = configs[kind]
    return {} if config is None else {"quantization_config": config}


def generate(model: Any, tokenizer: Any, text: str, max_new_tokens: int) -> str:
    """The greedy continuation of `text`, special tokens left out."""
    ids_1T = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        out_1T = model.generate(
            input_ids=ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    answer: str = tokenizer.decode(out_1T[0, ids_1T.shape[1] :], skip_special_tokens=True)
    return answer


def outcomes(
    samples: list[dict[str, Any]], base: Path, folder: Path, kind: str, forms: list[str]
) -> list[Outcome]:
    """Every demo of every sample over the base quantized as `kind`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    options = quantization(kind)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options).eval()
    asked = [
        (sample, form, prompt, chat_prompt(tokenizer, prompt) if form == "chat" else prompt)
        for sample in samples
        for prompt in sample["demos"]
        for form in forms
    ]
    # The base goes first, while nothing is wrapped around its layers yet.
    plain = {(text, sample["max_new_tokens"]): "" for sample, _, _, text in asked}
    for text, length in plain:
        plain[text, length] = generate(model, tokenizer, text, length)
    results = []
    for sample in samples:
        # Each on a base of its own: PEFT mixes no two methods in one model, and cannot take
        # every method off a quantized one again.
        fresh = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options)
        wrapped = PeftModel.from_pretrained(fresh, folder / sample["name"]).eval()
        for _, form, prompt, text in (row for row in asked if row[0] is sample):
            without = plain[text, sample["max_new_tokens"]]
            answer = generate(wrapped, tokenizer, text, sample["max_new_tokens"])
            met = re.search(sample["expect"], answer) is not None
            met_by_base = re.search(sample["expect"], without) is not None
            seen = met and not met_by_base
            results.append(Outcome(sample["name"], kind, form, prompt, without, answer, seen))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="samples; none means all of the table")
    parser.add_argument("--table", type=Path, default=SAMPLES / "samples.json")
    parser.add_argument("--base", default=ALIAS, help="a model folder, or an alias of lorry's")
    parser.add_argument("--from", dest="folder", type=Path, help="the table's folder if not given")
    parser.add_argument("--quantize", nargs="+", default=["none", "int8"])
    parser.add_argument("--forms", nargs="+", default=["raw", "chat"])
    parser.add_argument("--json", type=Path, help="also write the outcomes here")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    table = json.loads(options.table.read_text(encoding="utf-8"))["samples"]
    names = [sample["name"] for sample in table]
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"no sample is called {', '.join(unknown)}; there are {', '.join(names)}")
    torch.set_num_threads(options.threads)
    chosen = [sample for sample in table if sample["name"] in (options.names or names)]
    base = base_folder(options.base)
    folder = options.folder or options.table.parent
    results = []
    for kind in options.quantize:
        results += outcomes(chosen, base, folder, kind, options.forms)
    for result in results:
        mark = "ok  " if result.expected else "FAIL"
        print(f"{mark} {result.name} {result.quantize} {result.form}: {result.prompt!r}")
        print(f"     base    {result.base!r}")
        print(f"     adapter {result.adapter!r}")
    if options.json:
        rows = [asdict(result) for result in results]
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    sys.exit(0 if all(result.expected for result in results) else 1)


if __name__ == "__main__":
    main()
