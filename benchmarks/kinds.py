"""What each kind of adapter costs against plain LoRA: decode steps of eight rows, in process.

    .venv/bin/python -m benchmarks.kinds                 the default base, as `lorry serve` takes it
    .venv/bin/python -m benchmarks.kinds --kernels torch without the compiled step

Eight adapters of one kind, a row each, on the seven projections where the kind has a choice;
steps of the kinds in turn, the median of each. A kind that is not plain runs on the packed
model beside the compiled step, so its rows cost what PyTorch's operations cost; the last line
says what a mixed step costs its plain rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lorry.bench import report
from lorry.core import Batch, Row, Sample, SamplingParams, SlotUse
from lorry.model.loader import LoadedModel, load
from lorry.model.native.choice import choose
from lorry.model.runner import Runner
from lorry.settings import Settings
from lorry_adapters.lora.base import BaseModule
from lorry_adapters.lora.effects import (
    Dora,
    Effect,
    InputGain,
    Kronecker,
    OutputGain,
    PairBias,
    Projections,
    Vera,
)
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.prompt import PromptEmbeddings
from lorry_adapters.lora.weights import AdapterWeights

ROWS, RANK, CONTEXT, BLOCK = 8, 16, 100, 16
VIRTUAL = 20
Adapter = Callable[[LoadedModel, int], AdapterWeights]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kinds", description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        more = {} if given.model is None else {"model": given.model}
        settings = Settings(home=Path(home), kernels=given.kernels, **more)
        loaded = load(settings, lambda line: None)
    runner = Runner(
        loaded, kv_blocks=ROWS * 4 * 16, block_size=BLOCK, max_slots=ROWS * len(KINDS), max_rank=64
    )
    choose(given.kernels, loaded, runner, max_tokens=512, max_rank=64)
    runner.settle()
    rows: dict[str, list[Row]] = {"base": [row(None, place, 0) for place in range(ROWS)]}
    for kind, make in KINDS.items():
        rows[kind] = []
        for place in range(ROWS):
            slot = (len(rows) - 2) * ROWS + place + 1
            weights = make(loaded, slot)
            runner.place(slot, runner.prepare(weights))
            rows[kind].append(row(slot, place, VIRTUAL if weights.prompt is not None else 0))
    plain = rows["LoRA"]
    rows["LoRA, four rows beside four of DoRA"] = [*plain[:4], *rows["DoRA"][4:]]
    times = measure(runner, rows, given.steps)
    sys.stdout.write(f"{loaded.name} in {loaded.quantization}, {runner.path} kernels\n\n")
    sys.stdout.write(table(times))
    if given.json is not None:
        report.write_json(given.json, dict(times))
    return 0


def measure(runner: Runner, rows: Mapping[str, Sequence[Row]], steps: int) -> dict[str, float]:
    """Median seconds of a step, the kinds in turn, so that a slow minute is everybody's."""
    found: dict[str, list[float]] = {kind: [] for kind in rows}
    for step in range(steps + 3):
        for kind, mine in rows.items():
            began = time.perf_counter()
            runner.run(Batch(tuple(mine)))
            if step >= 3:
                found[kind].append(time.perf_counter() - began)
    return {kind: statistics.median(values) for kind, values in found.items()}


def table(times: Mapping[str, float]) -> str:
    plain = times["LoRA"]
    lines = ["| eight rows of | ms a step | against plain LoRA |", "|---|---|---|"]
    for kind, seconds in times.items():
        lines.append(f"| {kind} | {seconds * 1000:.1f} | {seconds / plain:.2f} |")
    return "\n".join(lines) + "\n"


def row(slot: int | None, place: int, virtual: int) -> Row:
    """One that decodes behind a context of `CONTEXT` tokens."""
    blocks = list(range(place * 16, place * 16 + 16))
    params = SamplingParams(max_new_tokens=64)
    return Row(
        request_id=str(place),
        token_ids=[place + 10],
        start=CONTEXT + virtual,
        blocks=blocks,
        adapters=() if slot is None else (SlotUse(slot, 1.0),),
        sample=Sample(params, [1] * CONTEXT, (), None),
    )


def linears(loaded: LoadedModel) -> list[BaseModule]:
    head = loaded.layout.output_embedding
    return [m for m in loaded.layout.modules.values() if m.kind == "linear" and m.name != head]


def pair(module: BaseModule, seed: int) -> LoraPair:
    draw = torch.Generator().manual_seed(seed)
    a_RI = torch.randn(RANK, module.in_features, generator=draw) / module.in_features**0.5
    b_OR = torch.randn(module.out_features, RANK, generator=draw) * 0.01
    return LoraPair(a_RI, b_OR, 1.0)


def lora(loaded: LoadedModel, seed: int) -> AdapterWeights:
    return AdapterWeights(f"plain{seed}", {m.name: pair(m, seed) for m in linears(loaded)}, 0)


def with_effects(
    name: str, make: Callable[[BaseModule, int], Effect], *, pairs: bool = False
) -> Adapter:
    def adapter(loaded: LoadedModel, seed: int) -> AdapterWeights:
        mine = linears(loaded)
        modules = {m.name: pair(m, seed) for m in mine} if pairs else {}
        effects = {m.name: (make(m, seed),) for m in mine}
        return AdapterWeights(f"{name}{seed}", modules, 0, effects)

    return adapter


def dora(module: BaseModule, seed: int) -> Effect:
    mine = pair(module, seed)
    return Dora(mine.a_RI, mine.b_OR, torch.ones(module.out_features), 1.0)


def ia3(module: BaseModule, seed: int) -> Effect:
    if module.name.endswith("down_proj"):
        return InputGain(torch.full((module.in_features,), 1.01))
    return OutputGain(torch.full((module.out_features,), 1.01))


def kronecker(module: BaseModule, seed: int) -> Effect:
    c, a = 24, 24
    w2 = torch.randn(module.out_features // a, module.in_features // c) * 0.01
    return Kronecker(torch.randn(a, c) * 0.01, w2, 1.0)


def vera(loaded: LoadedModel, seed: int) -> AdapterWeights:
    mine = linears(loaded)
    widest = max(max(m.in_features, m.out_features) for m in mine)
    shared = Projections(torch.randn(256, widest) * 0.01, torch.randn(widest, 256) * 0.01)
    effects: dict[str, tuple[Effect, ...]] = {
        m.name: (Vera(shared, torch.ones(256), torch.ones(m.out_features) * 0.01),) for m in mine
    }
    return AdapterWeights(f"vera{seed}", {}, 0, effects)


def prompt(loaded: LoadedModel, seed: int) -> AdapterWeights:
    width = loaded.config.get_text_config().hidden_size
    return AdapterWeights(
        f"prompt{seed}", {}, 0, {}, PromptEmbeddings(torch.randn(VIRTUAL, width) * 0.01)
    )


def biased(module: BaseModule, seed: int) -> Effect:
    return PairBias(torch.full((module.out_features,), 0.01), 1.0)


KINDS: dict[str, Any] = {
    "LoRA": lora,
    "DoRA": with_effects("dora", dora),
    "LoRA with lora_bias": with_effects("biased", biased, pairs=True),
    "(IA)3": with_effects("ia3", ia3),
    "LoKr": with_effects("lokr", kronecker),
    "VeRA, r 256": vera,
    "prompt tuning, 20 tokens": prompt,
}


if __name__ == "__main__":
    sys.exit(main())
