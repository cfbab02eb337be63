"""Workload W in process: transformers and PEFT, one `generate` for a batch, no server.

The same base, the same adapters, the first prompts of the same rows, the same 64 tokens. The
mixed batch is PEFT's own `adapter_names`; one adapter for the whole batch is its fastest way.

    python -m benchmarks.peft_mixed --kinds nf4,fp32 --json FILE
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lorry.bench import machine, preset, random_adapters, workload
from lorry.bench.served_base import ServedBase
from lorry.bench.workload import WorkloadRow
from lorry.configuration import load_settings
from lorry.errors import LorryError
from lorry.model.progress import meter_of

KINDS = ("nf4", "int8", "fp32")
RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peft_mixed", description=__doc__)
    parser.add_argument("--kinds", default="nf4,fp32", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--model", help="the base, as for lorry serve")
    parser.add_argument("--home", help="where the base is cached, as for lorry serve")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, help="instead of the workload's 64")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    kinds = given.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--kinds: {', '.join(unknown)} is none of {', '.join(KINDS)}")
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    settings = load_settings({"model": given.model, "home": given.home}, os.environ)
    base = ServedBase(settings.model, settings.home, say, meter_of(say))
    document: dict[str, Any] = {"machine": asdict(machine.look()), "rows": {}}
    with tempfile.TemporaryDirectory(prefix="lorry-bench-") as scratch:
        folders = [Path(scratch) / random_adapters.name_of(index, RANK) for index in range(8)]
        for index, folder in enumerate(folders):
            base.write_adapter(folder, index, RANK)
        for kind in kinds:
            say(f"PEFT, {kind}: loading")
            rows = measure(base.folder, folders, kind, given.repeats, given.new_tokens)
            document["rows"][kind] = rows
            gc.collect()
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=2) + "\n")


def measure(
    base: Path, folders: list[Path], kind: str, repeats: int, new_tokens: int | None
) -> dict[str, Any]:
    """Figures by row name."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, device_map=device, **_quantized(kind)
    )
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    names = [folder.name for folder in folders]
    model = PeftModel.from_pretrained(model, folders[0], adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    model.eval()

    def one_adapter() -> AbstractContextManager[None]:
        model.set_adapter(names[0])
        return nullcontext()

    def none() -> AbstractContextManager[None]:
        return model.disable_adapter()  # type: ignore[no-any-return]

    rows: dict[str, tuple[int, Callable[[], AbstractContextManager[None]], list[str] | None]] = {
        preset.BASE_ONE: (1, none, None),
        preset.BASE_EIGHT: (8, none, None),
        preset.ADAPTER_ONE: (1, one_adapter, None),
        preset.ADAPTER_EIGHT: (8, one_adapter, None),
        preset.DISTINCT: (8, nullcontext, names),
    }
    planned = {row.name: row for row in preset.workload_w(zipf=False, own_server=True)[0].rows}
    figures = {}
    for name, (batch, chosen, mixed) in rows.items():
        prompts, wanted = _prompts(planned[name], batch)
        inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(device)

        def generate(tokens: int, inputs: Any = inputs, mixed: list[str] | None = mixed) -> float:
            more = {} if mixed is None else {"adapter_names": mixed}
            before = time.perf_counter()
            with torch.inference_mode():
                made = model.generate(
                    **inputs,
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                    **more,
                )
            assert made.shape[1] - inputs["input_ids"].shape[1] == tokens
            return time.perf_counter() - before

        count = new_tokens or wanted
        with chosen():
            generate(2)
            first = statistics.median(generate(1) for _ in range(repeats))
            seconds = statistics.median(generate(count) for _ in range(repeats))
        rate = batch * count / seconds
        figures[name] = {
            "tokens_per_second": round(rate, 2),
            "first_token": round(first, 3),
            "seconds": round(seconds, 3),
            "batch": batch,
            "new_tokens": count,
            "repeats": repeats,
        }
        say(f"PEFT, {kind}, {name}: {rate:.1f} tokens/s, first token after {first * 1000:.0f} ms")
    return figures


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _prompts(row: WorkloadRow, batch: int) -> tuple[list[str], int]:
    asks = workload.plan(row, repeat=0)[:batch]
    return [ask.prompt for ask in asks], asks[0].new_tokens


def _quantized(kind: str) -> dict[str, Any]:
    if kind == "nf4":
        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.float32,
                bnb_4bit_use_double_quant=True,
            )
        }
    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
        return {"quantization_config": config}
    return {}


if __name__ == "__main__":
    try:
        main()
    except LorryError as error:
        sys.exit(f"error: {error.message}")
