"""Micro-benchmarks: each kernel alone, over tokens x adapters x rank x width.

    python -m benchmarks.kernels --json FILE

lora        the delta of one module by PyTorch's operations, with the memory that it must read
int8, fp32  one projection by fbgemm's integers and in fp32; compiled, as nf4 is: by the compiled
            step, whose instruction set is in the JSON
delta       what the adapters on all seven projections of a layer add to a step
attention   what a layer's attention over a context adds to a step
prompt      what a layer's attention over the end of a prompt adds to one over pieces of 16 tokens
greedy, top-p, ...   one token a row from a vocabulary, drawn so

A `delta` and an `attention` are the difference of two whole steps, by the path that is
named: between them lie only a few layers, and nothing is measured that is not served so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps import LAYERS, Steps, save_random_base
from lorry.bench import machine
from lorry.core import Sample, SamplingParams
from lorry.model import int8
from lorry.model.compiled import library
from lorry.model.compiled.compiled_drawing import CompiledDrawing
from lorry.model.compiled.compiled_linear import CompiledLinear
from lorry.model.drawing import Drawing, TorchDrawing
from lorry.model.int8 import Int8Linear
from lorry.model.logits import Logits
from lorry.model.sampler import sample
from lorry_adapters.lora.kernels import grouped, reference
from lorry_adapters.lora.plan import build_plan

TOKENS = (1, 8, 64, 512)
ADAPTERS = (1, 8, 32)
RANKS = (8, 16, 64)
WIDTHS = ((576, 576), (576, 1536), (1536, 576), (2048, 2048), (4096, 4096))
"""(in, out): SmolLM2-135M's, a 1B's, an 8B's."""

BASES = {
    "135M": {"hidden": 576, "inner": 1536, "heads": 9, "kv_heads": 3},
    "1B": {"hidden": 2048, "inner": 8192, "heads": 32, "kv_heads": 8},
}
"""Layers as those of such a model."""

CONTEXTS = (128, 1024, 4096)
PROMPTS = ((64, 64), (512, 512), (512, 4096))
"""Tokens, and with those before them."""
VOCABULARY = 49152

SAMPLING = {
    "greedy": SamplingParams(1),
    "temperature": SamplingParams(1, temperature=0.8),
    "top-k": SamplingParams(1, temperature=0.8, top_k=50),
    "top-p": SamplingParams(1, temperature=0.8, top_p=0.95),
    "typical-p": SamplingParams(1, temperature=0.8, typical_p=0.9),
    "penalty": SamplingParams(1, repetition_penalty=1.1),
}

GROUPS = ("lora", "linear", "layer", "sampler")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each figure")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    groups = given.only.split(",")
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(GROUPS)}")
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    on_cpu = device.type == "cpu" and int8.available()
    parts: dict[str, Iterator[dict[str, Any]]] = {
        "lora": lora(device, dtype, given.seconds),
        "linear": linear(given.seconds) if on_cpu else iter(()),
        "layer": layer(given.seconds) if on_cpu else iter(()),
        "sampler": sampler(device, given.seconds),
    }
    rows = []
    print(*(f"{name:>9}" for name in NAMES))
    for found in chain.from_iterable(parts[group] for group in groups):
        row = {name: found.get(name, "-") for name in NAMES}
        rows.append(row)
        print(*(f"{value:>9}" for value in row.values()))
        sys.stdout.flush()
    if given.json is not None:
        document = {
            "machine": asdict(machine.look()),
            "device": str(device),
            "dtype": given.dtype,
            "threads": torch.get_num_threads(),
            "instructions": instruction_set(),
            "rows": rows,
        }
        given.json.write_text(json.dumps(document, indent=2) + "\n")


NAMES = ("kernel", "by", "kv", "tokens", "adapters", "rank", "in", "out", "us", "GB/s", "error")
"""`in` and `out` of a projection; for a layer its width and, of attention, the context; `kv`:
the type of the cache."""


def lora(device: torch.device, dtype: torch.dtype, seconds: float) -> Iterator[dict[str, Any]]:
    """Tokens are dealt out to the adapters in equal parts, as in a decode step."""
    for width_in, width_out in WIDTHS:
        for rank in RANKS:
            for adapters in ADAPTERS:
                dice = torch.Generator(device).manual_seed(0)

                def random(*shape: int, dice: torch.Generator = dice) -> torch.Tensor:
                    return torch.randn(*shape, generator=dice, device=device, dtype=dtype)

                a_SRI = random(adapters + 1, rank, width_in)
                b_SRO = random(adapters + 1, rank, width_out)
                for tokens in TOKENS:
                    if tokens < adapters:
                        continue
                    x_TI, y_TO = random(tokens, width_in), random(tokens, width_out)
                    each = tokens // adapters
                    uses = [(each, [(slot, 1.0)]) for slot in range(1, adapters + 1)]
                    plan = build_plan(uses, dtype=dtype, device=device)
                    module = plan.for_ranks((0, *[rank] * adapters))
                    assert module is not None
                    made_TO, wanted_TO = torch.zeros_like(y_TO), torch.zeros_like(y_TO)
                    grouped.add_delta(made_TO, x_TI, a_SRI, b_SRO, module)
                    reference.add_delta(wanted_TO, x_TI, a_SRI, b_SRO, plan.pairs)
                    off = (made_TO - wanted_TO).abs().max() / wanted_TO.abs().max()
                    spent = clock(
                        lambda: grouped.add_delta(y_TO, x_TI, a_SRI, b_SRO, module),  # noqa: B023
                        device,
                        seconds,
                    )
                    moved = adapters * rank * (width_in + width_out) + tokens * (
                        width_in + 2 * width_out
                    )
                    yield {
                        "kernel": "lora",
                        "by": "torch",
                        "tokens": tokens,
                        "adapters": adapters,
                        "rank": rank,
                        "in": width_in,
                        "out": width_out,
                        "us": round(spent * 1e6, 1),
                        "GB/s": round(moved * a_SRI.element_size() / spent / 1e9, 1),
                        "error": f"{off.item():.0e}",
                    }


def linear(seconds: float) -> Iterator[dict[str, Any]]:
    for width_in, width_out in WIDTHS:
        weight_OI = torch.randn(width_out, width_in, generator=torch.Generator().manual_seed(0))
        absmax_O = weight_OI.abs().amax(1)
        codes_OI = (weight_OI * (127 / absmax_O[:, None])).round().to(torch.int8)
        runs: dict[str, tuple[Callable[[torch.Tensor], object], int]] = {
            "int8": (Int8Linear(codes_OI, absmax_O / 127, None), 1),
            "fp32": (partial(torch.nn.functional.linear, weight=weight_OI), 4),
        }
        for tokens in TOKENS:
            x_TI = torch.randn(tokens, width_in, generator=torch.Generator().manual_seed(1))
            for name, (run, bytes_each) in runs.items():
                with torch.inference_mode():
                    spent = clock(partial(run, x_TI), torch.device("cpu"), seconds)
                yield {
                    "kernel": name,
                    "by": "torch",
                    "tokens": tokens,
                    "in": width_in,
                    "out": width_out,
                    "us": round(spent * 1e6, 1),
                    "GB/s": round(width_in * width_out * bytes_each / spent / 1e9, 1),
                }


def layer(seconds: float) -> Iterator[dict[str, Any]]:
    """Both paths, on layers of the bases' shapes."""
    for base in BASES.values():
        with tempfile.TemporaryDirectory(prefix="lorry-bench-") as scratch:
            save_random_base(Path(scratch), **base)
            for by in paths():
                yield from compiled_linears(Path(scratch), by, seconds)
                for rank in RANKS:
                    yield from deltas(Path(scratch), by, rank, seconds)
                yield from attention(Path(scratch), by, seconds)


def paths() -> tuple[str, ...]:
    try:
        library.find()
    except library.Missing as missing:
        print(f"no compiled step: {missing}", file=sys.stderr)
        return ("torch",)
    return ("torch", "compiled")


def instruction_set() -> str | None:
    """The compiled step's; None where there is none."""
    try:
        return library.find()[0]
    except library.Missing:
        return None


def compiled_linears(base: Path, by: str, seconds: float) -> Iterator[dict[str, Any]]:
    if by != "compiled":
        return
    for quantization in ("int8", "nf4"):
        steps = Steps(base, kernels=by, slots=0, rank=1, quantization=quantization)
        yield from linears_of(steps, quantization, by, seconds)
        steps.close()


def linears_of(steps: Steps, kernel: str, by: str, seconds: float) -> Iterator[dict[str, Any]]:
    """One of each shape; the output head, in 8 bits everywhere, is none of them."""
    modules = steps.loaded.model.get_decoder().modules()
    found = [module for module in modules if isinstance(module, CompiledLinear)]
    widths = {(one.in_features, one.out_features): one for one in found}
    for (width_in, width_out), module in widths.items():
        for tokens in TOKENS:
            x_TI = torch.randn(tokens, width_in, generator=torch.Generator().manual_seed(1))
            with torch.inference_mode():
                spent = clock(partial(module, x_TI), torch.device("cpu"), seconds)
            yield {
                "kernel": kernel,
                "by": by,
                "tokens": tokens,
                "in": width_in,
                "out": width_out,
                "us": round(spent * 1e6, 1),
                "GB/s": round(module.nbytes / spent / 1e9, 1),
            }


def deltas(base: Path, by: str, rank: int, seconds: float) -> Iterator[dict[str, Any]]:
    most = max(ADAPTERS)
    steps = Steps(base, kernels=by, slots=most, rank=rank)
    width = steps.loaded.config.hidden_size
    for tokens in (tokens for tokens in TOKENS if tokens <= 64):
        runs = [steps.decode(tokens, 16, adapters) for adapters in (0, *ADAPTERS)]
        plain, *others = race(runs, seconds)
        for adapters, spent in zip(ADAPTERS, others, strict=True):
            if adapters <= tokens:
                yield {
                    "kernel": "delta",
                    "by": by,
                    "tokens": tokens,
                    "adapters": adapters,
                    "rank": rank,
                    "in": width,
                    "us": round((spent - plain) / LAYERS * 1e6, 1),
                }
    steps.close()


def attention(base: Path, by: str, seconds: float) -> Iterator[dict[str, Any]]:
    for kv_cache in ("auto", "int8") if by == "compiled" else ("auto",):
        cells = 8 * (max(CONTEXTS) + 64)
        steps = Steps(base, kernels=by, slots=0, rank=1, cells=cells, kv_cache=kv_cache)
        width = steps.loaded.config.hidden_size
        kept = {"by": by, "kv": str(steps.executor.paths.cache.dtype).removeprefix("torch.")}
        for tokens in (1, 8):
            runs = [steps.decode(tokens, context) for context in (1, *CONTEXTS)]
            least, *others = race(runs, seconds)
            for context, spent in zip(CONTEXTS, others, strict=True):
                yield {
                    "kernel": "attention",
                    **kept,
                    "tokens": tokens,
                    "in": width,
                    "out": context,
                    "us": round((spent - least) / LAYERS * 1e6, 1),
                }
        for tokens, context in PROMPTS:
            whole = steps.prompt(tokens, start=context - tokens)
            least, spent = race([steps.prompt(tokens, pieces=tokens // 16), whole], seconds)
            yield {
                "kernel": "prompt",
                **kept,
                "tokens": tokens,
                "in": width,
                "out": context,
                "us": round((spent - least) / LAYERS * 1e6, 1),
            }
        steps.close()


def sampler(device: torch.device, seconds: float) -> Iterator[dict[str, Any]]:
    selections: dict[str, Drawing] = {"torch": TorchDrawing()}
    if device.type == "cpu" and "compiled" in paths():
        selections["compiled"] = CompiledDrawing(library.find()[1])
    for by, selection in selections.items():
        for rows in (1, 8):
            dice = torch.Generator(device).manual_seed(0)
            values_KV = 3 * torch.randn(rows, VOCABULARY, generator=dice, device=device)
            logits = Logits.of(values_KV)
            for name, params in SAMPLING.items():
                samples = [Sample(params, [5, 6], [7, 8], None)] * rows
                spent = clock(partial(sample, logits, samples, selection), device, seconds)
                yield {
                    "kernel": name,
                    "by": by,
                    "tokens": rows,
                    "in": VOCABULARY,
                    "us": round(spent * 1e6, 1),
                }


def race(runs: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Seconds of one call of each: the best of seven turns, so that what slows the machine
    for a moment slows no single one of them."""
    counts = []
    for run in runs:
        run()
        before = time.perf_counter()
        run()
        counts.append(max(1, int(seconds / 7 / max(time.perf_counter() - before, 1e-7))))
    best = [float("inf")] * len(runs)
    for _ in range(7):
        for index, (run, count) in enumerate(zip(runs, counts, strict=True)):
            before = time.perf_counter()
            for _ in range(count):
                run()
            best[index] = min(best[index], (time.perf_counter() - before) / count)
    return best


def clock(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of one call: the best of five series. Others on the machine only ever add."""

    def series(count: int) -> float:
        wait(device)
        before = time.perf_counter()
        for _ in range(count):
            run()
        wait(device)
        return time.perf_counter() - before

    series(2)
    count = max(1, int(seconds / 5 / max(series(3) / 3, 1e-7)))
    return min(series(count) for _ in range(5)) / count


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
