"""What each kind of adapter costs against plain LoRA: steps of eight rows, in process.

    .venv/bin/python -m benchmarks.kinds                 the default base, as `lorry serve` takes it
    .venv/bin/python -m benchmarks.kinds --kernels torch without the compiled step

Eight adapters of one kind, a row each, on the seven projections where the kind has a choice;
steps of the kinds in turn, the median of each: all rows decode, or all read a prompt. All run on
the compiled step; mixed steps say what kinds cost each other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorry.bench import report
from lorry.core import Batch, Row, Sample, SamplingParams, SlotUse
from lorry.model import paths
from lorry.model.base_loader import LoadedModel, load
from lorry.model.executor import Executor
from lorry.settings import Settings
from lorry_adapters.lora.base import BaseModule
from lorry_adapters.lora.effects import (
    Dora,
    Effect,
    EffectTarget,
    Indivisible,
    InputGain,
    Kronecker,
    OutputGain,
    PairBias,
    Projections,
    Vera,
)
from lorry_adapters.lora.matrix_deltas import BoundChange, BoundPair, BoundTurn
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.prompt import PromptEmbeddings
from lorry_adapters.lora.replaced import OwnModule, TokenLogits, TokenRows
from lorry_adapters.lora.sparse import Sparse
from lorry_adapters.lora.weights import AdapterWeights

ROWS, RANK, CONTEXT, BLOCK = 8, 16, 100, 16
PROMPT = 64
"""Tokens of a prompt. Of those steps there is one for `EVERY` decodes."""
EVERY = 6
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
        loaded = load(settings, lambda line: None, replacer=paths.replacer(given.kernels))
    sizes = paths.Sizes(
        kv_blocks=ROWS * 4 * 16,
        block_size=BLOCK,
        max_slots=ROWS * len(KINDS),
        max_rank=64,
        max_tokens=512,
    )
    found = paths.first_pass(loaded)
    kernels = paths.choose(given.kernels, loaded, found, block_size=BLOCK)
    executor = paths.build(loaded, found, kernels, sizes)
    paths.leave_cores(executor)
    placement = executor.placement
    slots: dict[str, list[tuple[SlotUse, ...]]] = {"base": [()] * ROWS}
    virtual: dict[str, int] = {}
    for kind, make in KINDS.items():
        slots[kind] = []
        for _ in range(ROWS):
            slot = (len(slots) - 2) * ROWS + len(slots[kind]) + 1
            weights = make(loaded, slot)
            placement.place(slot, placement.prepare(weights))
            slots[kind].append((SlotUse(slot, 1.0),))
            virtual[kind] = VIRTUAL if weights.prompt is not None else 0
    slots |= mixed(slots)
    steps = {
        kind: Batch(tuple(row(mine, at, virtual.get(kind, 0)) for at, mine in enumerate(uses)))
        for kind, uses in slots.items()
    }
    prompts = {
        kind: Batch(
            tuple(prompt_of(mine, at, virtual.get(kind, 0)) for at, mine in enumerate(uses))
        )
        for kind, uses in slots.items()
    }
    decodes, reads = measure(executor, steps, prompts, given.steps)
    sys.stdout.write(
        f"{loaded.name} in {loaded.quantization}, {executor.paths.kernels} kernels\n\n"
    )
    sys.stdout.write(table(decodes, reads))
    if given.json is not None:
        report.write_json(given.json, {"decode": dict(decodes), "prompt": dict(reads)})
    return 0


def mixed(slots: Mapping[str, list[tuple[SlotUse, ...]]]) -> dict[str, list[tuple[SlotUse, ...]]]:
    """Rows of several kinds in one step, at several scales, and in one sum."""
    plain, dora = slots["LoRA"], slots["DoRA"]
    summed = ("LoRA", "DoRA", "(IA)3")
    return {
        "DoRA, each at a scale of its own": [
            (SlotUse(use.slot, 0.5 + at / 8),) for at, (use,) in enumerate(dora)
        ],
        "LoRA, four rows beside four of DoRA": [*plain[:4], *dora[4:]],
        "LoRA + DoRA + (IA)3 in every row": [
            tuple(use for kind in summed for use in slots[kind][at]) for at in range(ROWS)
        ],
        "LoRA + DoRA + LoKr in every row": [
            tuple(use for kind in ("LoRA", "DoRA", "LoKr") for use in slots[kind][at])
            for at in range(ROWS)
        ],
    }


Seconds = Mapping[str, float]


def measure(
    executor: Executor, steps: Mapping[str, Batch], prompts: Mapping[str, Batch], count: int
) -> tuple[Seconds, Seconds]:
    """Median seconds of a step, the kinds in turn, so that a slow minute is everybody's."""
    found: dict[str, list[float]] = {kind: [] for kind in steps}
    read: dict[str, list[float]] = {kind: [] for kind in prompts}
    for step in range(count + 3):
        for kind, batch in steps.items():
            found[kind].append(seconds(executor, batch))
        if step % EVERY == 0:
            for kind, batch in prompts.items():
                read[kind].append(seconds(executor, batch))
    return (
        {kind: statistics.median(values[3:]) for kind, values in found.items()},
        {kind: statistics.median(values[1:]) for kind, values in read.items()},
    )


def seconds(executor: Executor, batch: Batch) -> float:
    began = time.perf_counter()
    executor.run(batch)
    return time.perf_counter() - began


def table(decodes: Seconds, reads: Seconds) -> str:
    lines = [
        f"| eight rows of | ms a step | of LoRA | ms for prompts of {PROMPT} | of LoRA |",
        "|---|---|---|---|---|",
    ]
    for kind, decode in decodes.items():
        figures = [decode * 1000, decode / decodes["LoRA"], reads[kind] * 1000]
        figures.append(reads[kind] / reads["LoRA"])
        lines.append("| {} | {:.1f} | {:.2f} | {:.0f} | {:.2f} |".format(kind, *figures))
    return "\n".join(lines) + "\n"


def row(uses: tuple[SlotUse, ...], place: int, virtual: int) -> Row:
    """One that decodes behind a context of `CONTEXT` tokens."""
    return _row(uses, place, [place + 10], CONTEXT + virtual)


def prompt_of(uses: tuple[SlotUse, ...], place: int, virtual: int) -> Row:
    """One that reads a prompt."""
    return _row(uses, place, [place + token for token in range(10, 10 + PROMPT)], virtual)


def _row(uses: tuple[SlotUse, ...], place: int, token_ids: list[int], start: int) -> Row:
    return Row(
        request_id=str(place),
        token_ids=token_ids,
        start=start,
        blocks=list(range(place * 16, place * 16 + 16)),
        adapters=uses,
        sample=Sample(SamplingParams(max_new_tokens=64), [1] * CONTEXT, (), None),
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


class Low(Indivisible):
    """HRA and its like: a change that PEFT's layers show to be of a low rank."""

    nbytes = 0

    def __init__(self, module: BaseModule, seed: int) -> None:
        self._pair = pair(module, seed)

    def bind(self, base: EffectTarget) -> BoundPair:
        return BoundPair(self._pair.a_RI, self._pair.b_OR, base.dtype, base.device)


class Rotation(Indivisible):
    """OFT in blocks of 32, PEFT's default."""

    nbytes = 0

    def __init__(self, module: BaseModule, seed: int) -> None:
        self._blocks = torch.randn(module.in_features // 32, 32, 32) * 0.01

    def bind(self, base: EffectTarget) -> BoundTurn:
        return BoundTurn(self._blocks, base.module, base.dtype, base.device)


class Change(Indivisible):
    """FourierFT and its like: a change of all of a weight."""

    nbytes = 0

    def __init__(self, module: BaseModule, seed: int) -> None:
        self._change_OI = torch.randn(module.out_features, module.in_features) * 0.001

    def bind(self, base: EffectTarget) -> BoundChange:
        return BoundChange(self._change_OI)


def sparse(module: BaseModule, seed: int) -> Effect:
    count = 16 * (module.in_features + module.out_features)
    rows_N = torch.randint(0, module.out_features, (count,))
    columns_N = torch.randint(0, module.in_features, (count,))
    shape = (module.out_features, module.in_features)
    return Sparse(rows_N, columns_N, torch.randn(count) * 0.01, shape)


def vera(loaded: LoadedModel, seed: int) -> AdapterWeights:
    mine = linears(loaded)
    widest = max(max(m.in_features, m.out_features) for m in mine)
    draw = torch.Generator().manual_seed(0)
    shared = Projections(
        torch.randn(256, widest, generator=draw) * 0.01,
        torch.randn(widest, 256, generator=draw) * 0.01,
    )
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


def trained_tokens(loaded: LoadedModel, seed: int) -> AdapterWeights:
    layout, width = loaded.layout, loaded.config.get_text_config().hidden_size
    assert layout.input_embedding is not None and layout.output_embedding is not None
    ids_K, rows_KH = torch.arange(10), torch.randn(10, width) * 0.01
    effects: dict[str, tuple[Effect, ...]] = {
        layout.input_embedding: (TokenRows(ids_K, rows_KH),),
        layout.output_embedding: (TokenLogits(ids_K, rows_KH),),
    }
    return replace(lora(loaded, seed), digest=f"tokens{seed}", effects=effects)


def own_head(loaded: LoadedModel, seed: int) -> AdapterWeights:
    head = loaded.layout.output_embedding
    assert head is not None
    module = loaded.layout.modules[head]
    weight_OI = torch.randn(module.out_features, module.in_features) * 0.05
    effects: dict[str, tuple[Effect, ...]] = {head: (OwnModule(weight_OI, None),)}
    return replace(lora(loaded, seed), digest=f"head{seed}", effects=effects)


KINDS: dict[str, Any] = {
    "LoRA": lora,
    "DoRA": with_effects("dora", dora),
    "LoRA with lora_bias": with_effects("biased", biased, pairs=True),
    "(IA)3": with_effects("ia3", ia3),
    "LoRA with 10 trained tokens": trained_tokens,
    "LoRA with a head of its own": own_head,
    "LoKr": with_effects("lokr", kronecker),
    "VeRA, r 256": vera,
    "HRA, r 16": with_effects("hra", Low),
    "OFT, blocks of 32": with_effects("oft", Rotation),
    "FourierFT": with_effects("fourierft", Change),
    "SHiRA": with_effects("shira", sparse),
    "prompt tuning, 20 tokens": prompt,
}


if __name__ == "__main__":
    sys.exit(main())
