"""A decode step on a GPU: many adapters against none, against the quantized matmuls alone, and
against PEFT.

    python -m benchmarks.gpu                                  an 8B-shaped Llama in NF4, on cuda
    python -m benchmarks.gpu --layers 4 --adapters 1,8        less of it
    python -m benchmarks.gpu --device cpu --shape tiny        that it runs at all; no claims

Weights are random and nothing is downloaded; the 8B shape wants 24 GB on the device while it
is made and 8 GB afterwards. Every row of the batch has an adapter of its own. Steps are timed
by device events on a GPU (by the clock on a CPU), after steps that record and compile.

- step: `Runner.run` for a batch of single tokens, sampling and the host's work included
- matmuls: the base's quantized linears and its head one after another, nothing else
- PEFT: the same base, the same adapters in one batch (`adapter_names`), transformers' cache
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache

from benchmarks.gpu_model import SHAPES, load_random, projections, random_adapter, smaller
from lorry.bench import machine
from lorry.core import Batch, Row, Sample, SamplingParams, SlotUse
from lorry.model import paths
from lorry.model.base_loader import LoadedModel
from lorry.model.executor import Executor

BLOCK_SIZE = 16
WARM_UP = 3


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", default="llama-8b", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="instead of the shape's own number")
    parser.add_argument("--adapters", default="1,8,32,64", help="batches, a distinct one a row")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--context", type=int, default=512, help="tokens before the new one")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--quantize", default="nf4", choices=("nf4", "none"))
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: PyTorch sees no CUDA device here. This benchmark needs one, with 24 GB for the "
            "8B shape; --device cpu --shape tiny shows that it runs, and no more.",
            file=sys.stderr,
        )
        return 1
    device = torch.device(given.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = smaller(SHAPES[given.shape], given.layers)
    batches = [int(number) for number in given.adapters.split(",")]

    def load() -> LoadedModel:
        return load_random(shape, device=device, dtype=dtype, quantize=given.quantize)

    loaded = load()
    matmuls = {rows: floor(loaded, rows, given.steps) for rows in batches}
    sizes = paths.Sizes(
        kv_blocks=max(batches) * (given.context // BLOCK_SIZE + 1),
        block_size=BLOCK_SIZE,
        max_slots=max(batches),
        max_rank=given.rank,
        max_tokens=512,
    )
    found = paths.first_pass(loaded)
    kernels = paths.choose("auto", loaded, found, block_size=BLOCK_SIZE)
    executor = paths.checked(loaded, found, kernels, sizes, print)
    placement = executor.placement
    steps = {rows: decode(executor, rows, given, adapters=False) for rows in batches}
    for slot in range(1, max(batches) + 1):
        placement.place(slot, placement.prepare(random_adapter(loaded, given.rank, slot)))
    mixed = {rows: decode(executor, rows, given, adapters=True) for rows in batches}
    path = executor.paths.kernels
    executor.paths.close()
    del loaded, placement, executor
    gc.collect()
    peft = {} if given.no_peft else with_peft(load(), batches, given)
    rows = [
        {
            "rows": n,
            "base ms": steps[n],
            "adapters ms": mixed[n],
            "base/adapters": steps[n] / mixed[n],
            "matmuls ms": matmuls[n],
            "adapters/matmuls": mixed[n] / matmuls[n],
            "PEFT ms": peft.get(n),
        }
        for n in batches
    ]
    print(*(f"{name:>17}" for name in rows[0]))
    for row in rows:
        print(*("-".rjust(17) if value is None else f"{value:17.4g}" for value in row.values()))
    if given.json is not None:
        document = {
            "machine": asdict(machine.look()),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "kernels": path,
            "shape": asdict(shape),
            "quantize": given.quantize,
            "rank": given.rank,
            "context": given.context,
            "steps": given.steps,
            "rows": rows,
        }
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def decode(
    executor: Executor, num_rows: int, given: argparse.Namespace, *, adapters: bool
) -> float:
    """Milliseconds of a step. The cache holds zeros: nobody asks what they mean."""
    per_row = given.context // BLOCK_SIZE + 1
    params = SamplingParams(max_new_tokens=1)
    rows = tuple(
        Row(
            request_id=str(index),
            token_ids=[index],
            start=given.context,
            blocks=list(range(index * per_row, (index + 1) * per_row)),
            adapters=(SlotUse(index + 1, 0.5 + index / 100),) if adapters else (),
            sample=Sample(params, [0], (), None),
        )
        for index in range(num_rows)
    )
    batch = Batch(rows)
    return clock(lambda: executor.run(batch), given.steps, torch.device(given.device))


@torch.inference_mode()
def floor(loaded: LoadedModel, num_rows: int, steps: int) -> float:
    """Milliseconds of all linears, each on its own input, from one recording on a GPU."""
    linears: list[nn.Module] = [module for _, module in projections(loaded.model)]
    linears.append(loaded.model.get_output_embeddings())
    widths = [int(linear.in_features) for linear in linears]  # type: ignore[arg-type]
    inputs = {
        width: torch.randn(1, num_rows, width, device=loaded.device, dtype=loaded.dtype)
        for width in set(widths)
    }

    def run() -> None:
        for linear, width in zip(linears, widths, strict=True):
            linear(inputs[width])

    if loaded.device.type != "cuda":
        return clock(run, steps, loaded.device)
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return clock(graph.replay, steps, loaded.device)


@torch.inference_mode()
def with_peft(
    loaded: LoadedModel, batches: list[int], given: argparse.Namespace
) -> dict[int, float]:
    """Milliseconds of PEFT's step for a batch of distinct adapters."""
    targets = sorted({name.rpartition(".")[2] for name, _ in projections(loaded.model)})
    config = LoraConfig(
        r=given.rank, lora_alpha=given.rank, target_modules=targets, init_lora_weights=False
    )
    # In the base's own type, as ours are; PEFT would otherwise keep them in fp32.
    same: dict[str, Any] = {"autocast_adapter_dtype": False}
    model: Any = get_peft_model(loaded.model, config, adapter_name="a0", **same)
    for index in range(1, max(batches)):
        model.add_adapter(f"a{index}", config, **same)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(loaded.device, loaded.dtype)
    model.eval()
    found = {}
    text = loaded.config
    shape = (given.context, text.hidden_size // text.num_attention_heads)
    for rows in batches:
        names = [f"a{index}" for index in range(rows)]
        ids_B1 = torch.arange(rows, device=loaded.device).unsqueeze(1)
        past = torch.zeros(
            rows, text.num_key_value_heads, *shape, device=loaded.device, dtype=loaded.dtype
        )

        def step(names: list[str] = names, ids: Any = ids_B1, past: Any = past) -> None:
            cache = DynamicCache()
            for layer in range(text.num_hidden_layers):
                cache.update(past, past, layer)
            model(input_ids=ids, past_key_values=cache, adapter_names=names).logits.argmax(-1)

        found[rows] = clock(step, max(1, given.steps // 5), loaded.device)
    return found


def clock(run: Callable[[], object], steps: int, device: torch.device) -> float:
    """Median milliseconds of one call."""
    for _ in range(WARM_UP):
        run()
    spent: list[float] = []
    for _ in range(steps):
        if device.type == "cuda":
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record()
            run()
            end.record()
            end.synchronize()
            spent.append(begin.elapsed_time(end))
        else:
            before = time.perf_counter()
            run()
            spent.append((time.perf_counter() - before) * 1000)
    return statistics.median(spent)


if __name__ == "__main__":
    sys.exit(main())
