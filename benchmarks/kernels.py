"""Micro-benchmarks: each kernel alone, over tokens x adapters x rank x width.

    python -m benchmarks.kernels --json FILE

`lora`: the delta of one module for a step's tokens, by the kernel that serves, with the memory
that it must read as GB/s. `linear`: one base projection in int8 and in fp32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from lorry.bench import machine
from lorry.model import int8
from lorry.model.int8 import Int8Linear
from lorry_adapters.lora.kernels import grouped, reference
from lorry_adapters.lora.plan import build_plan

TOKENS = (1, 8, 64, 512)
ADAPTERS = (1, 8, 32)
RANKS = (8, 16, 64)
WIDTHS = ((576, 576), (576, 1536), (1536, 576), (2048, 2048), (4096, 4096))
"""(in, out): SmolLM2-135M's, a 1B's, an 8B's."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each figure")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    rows = []
    for row in chain(lora(device, dtype, given.seconds), linear(device, given.seconds)):
        rows.append(row)
        print(*(f"{value:>9}" if key != "kernel" else f"{value:<8}" for key, value in row.items()))
        sys.stdout.flush()
    if given.json is not None:
        document = {
            "machine": asdict(machine.look()),
            "device": str(device),
            "dtype": given.dtype,
            "threads": torch.get_num_threads(),
            "rows": rows,
        }
        given.json.write_text(json.dumps(document, indent=2) + "\n")


def lora(device: torch.device, dtype: torch.dtype, seconds: float) -> Iterator[dict[str, Any]]:
    """Tokens are dealt out to the adapters in equal parts, as in a decode step."""
    names = ("tokens", "adapters", "rank", "in", "out", "us", "GB/s", "error")
    print("kernel  ", *(f"{name:>9}" for name in names))
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
                        "tokens": tokens,
                        "adapters": adapters,
                        "rank": rank,
                        "in": width_in,
                        "out": width_out,
                        "us": round(spent * 1e6, 1),
                        "GB/s": round(moved * a_SRI.element_size() / spent / 1e9, 1),
                        "error": f"{off.item():.0e}",
                    }


def linear(device: torch.device, seconds: float) -> Iterator[dict[str, Any]]:
    if device.type != "cpu" or not int8.available():
        return
    for width_in, width_out in WIDTHS:
        weight_OI = torch.randn(width_out, width_in, generator=torch.Generator().manual_seed(0))
        absmax_O = weight_OI.abs().amax(1)
        codes_OI = (weight_OI * (127 / absmax_O[:, None])).round().to(torch.int8)
        kernel = Int8Linear(codes_OI, absmax_O / 127, None)
        for tokens in TOKENS:
            x_TI = torch.randn(tokens, width_in, generator=torch.Generator().manual_seed(1))
            runs: dict[str, tuple[Callable[[], object], int]] = {
                "int8": (partial(kernel, x_TI), 1),
                "fp32": (partial(torch.nn.functional.linear, x_TI, weight_OI), 4),
            }
            for name, (run, bytes_each) in runs.items():
                with torch.inference_mode():
                    spent = clock(run, device, seconds)
                yield {
                    "kernel": name,
                    "tokens": tokens,
                    "adapters": "-",
                    "rank": "-",
                    "in": width_in,
                    "out": width_out,
                    "us": round(spent * 1e6, 1),
                    "GB/s": round(width_in * width_out * bytes_each / spent / 1e9, 1),
                    "error": "-",
                }


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
