"""A few layers of an 8B's shape in NF4 on a CUDA device: Triton's kernels and CUDA graphs against
PyTorch's operations, against PEFT, and rows against their neighbours.

Activations are bfloat16, so equal means within a tolerance: a step's numbers are rounded to
eight bits many times over.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from benchmarks.gpu_model import SHAPES, load_random, random_adapter, smaller
from lorry.core import Batch, Row, RowResult, Sample, SamplingParams, SlotUse
from lorry.model import paths, triton_model
from lorry.model.base_loader import LoadedModel
from lorry.model.executor import Executor
from lorry_adapters.lora.weights import AdapterWeights

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
BLOCK_SIZE, LENGTH, RANKS = 16, 40, (16, 8, 33, 64)

LOGPROB_TOLERANCE = 0.1
"""Of a log-probability over 128256 tokens of random weights, which are all near -12."""


@dataclass
class Bench:
    loaded: LoadedModel
    adapters: list[AdapterWeights]
    triton: Executor
    plain: Executor


def load() -> LoadedModel:
    shape = smaller(SHAPES["llama-8b"], 3)
    return load_random(shape, device=DEVICE, dtype=DTYPE, quantize="nf4")


def executor_on(
    loaded: LoadedModel, adapters: Sequence[AdapterWeights], *, kernels: str
) -> Executor:
    sizes = paths.Sizes(256, BLOCK_SIZE, max_slots=len(RANKS), max_rank=max(RANKS))
    found = paths.first_pass(loaded)
    chosen = paths.choose(kernels, loaded, found, block_size=BLOCK_SIZE)
    made = paths.checked(loaded, found, chosen, sizes)
    assert made.paths.kernels == ("triton" if kernels == "auto" else kernels)
    for slot, adapter in enumerate(adapters, start=1):
        made.placement.place(slot, made.placement.prepare(adapter))
    return made


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    # Two models of one seed: an executor keeps the one that it is given.
    loaded, other = load(), load()
    adapters = [random_adapter(loaded, rank, seed) for seed, rank in enumerate(RANKS)]
    yield Bench(
        loaded,
        adapters,
        executor_on(loaded, adapters, kernels="auto"),
        executor_on(other, adapters, kernels="torch"),
    )
    gc.collect()
    torch.cuda.empty_cache()


Uses = tuple[tuple[int, float], ...]
EVERY: list[Uses] = [(), ((1, 1.0),), ((2, 0.5),), ((3, 1.0), (1, -0.5)), ((4, 2.0),), ((1, 1.0),)]


def prompt(index: int) -> list[int]:
    dice = torch.Generator().manual_seed(index)
    return torch.randint(0, 128256, (LENGTH,), generator=dice).tolist()


def score(executor: Executor, uses: Sequence[Uses], *, chunk: int) -> list[list[float]]:
    """Log-probabilities of each row's tokens, `chunk` at a time; 1 is decoding."""
    found: list[list[float]] = [[] for _ in uses]
    for start in range(0, LENGTH - 1, chunk):
        stop = min(start + chunk, LENGTH - 1)
        rows = tuple(
            row(index, use, prompt(index)[start:stop], start, prompt(index)[start + 1 : stop + 1])
            for index, use in enumerate(uses)
        )
        for mine, result in zip(found, executor.run(Batch(rows)), strict=True):
            mine += [token.logprob for token in result.prompt]
    return found


def greedy(executor: Executor, uses: Sequence[Uses], count: int) -> list[list[RowResult]]:
    first = tuple(row(index, use, prompt(index), 0) for index, use in enumerate(uses))
    drawn = [[result] for result in executor.run(Batch(first))]
    for step in range(count - 1):
        rows = tuple(
            row(index, use, [last(drawn[index])], LENGTH + step) for index, use in enumerate(uses)
        )
        for mine, result in zip(drawn, executor.run(Batch(rows)), strict=True):
            mine.append(result)
    return drawn


def last(results: Sequence[RowResult]) -> int:
    return results[-1].drawn[0].token.token_id


def row(
    index: int, uses: Uses, tokens: list[int], start: int, targets: list[int] | None = None
) -> Row:
    per_row = 6
    return Row(
        request_id=str(index),
        token_ids=tokens,
        start=start,
        blocks=[index + 40 * n for n in range(per_row)],
        adapters=tuple(SlotUse(slot, scale) for slot, scale in uses),
        sample=Sample(SamplingParams(1), tokens, (), None),
        prompt_targets=targets,
    )


def close(mine: list[list[float]], theirs: list[list[float]]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, abs=LOGPROB_TOLERANCE)


def test_every_kernel_is_right_here(bench: Bench) -> None:
    shapes = bench.plain.paths.cache.shapes.values()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert triton_model.probe(shapes, dtype=dtype, device=DEVICE, block_size=BLOCK_SIZE) is None


@pytest.mark.parametrize("chunk", [1, 16])
def test_the_other_kernels_agree(bench: Bench, chunk: int) -> None:
    close(score(bench.triton, EVERY, chunk=chunk), score(bench.plain, EVERY, chunk=chunk))


def test_peft_agrees(bench: Bench) -> None:
    """The same adapters in PEFT on the same base, one sequence at a time, eager attention."""
    mine = score(bench.triton, EVERY, chunk=16)
    model = peft_of(load(), bench.adapters)
    for index, uses in enumerate(EVERY):
        ids_1T = torch.tensor([prompt(index)], device=DEVICE)
        with torch.inference_mode(), scaled(model, uses):
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float()
        table_TV = logits_TV.log_softmax(-1)
        theirs = [float(table_TV[t, ids_1T[0, t + 1]]) for t in range(LENGTH - 1)]
        assert mine[index] == pytest.approx(theirs, abs=LOGPROB_TOLERANCE)


def peft_of(loaded: LoadedModel, adapters: Sequence[AdapterWeights]) -> Any:
    """PEFT's model with adapter `slot 1`, `slot 2`, ..."""
    loaded.model.set_attn_implementation("eager")
    model: Any = None
    for slot, adapter in enumerate(adapters, start=1):
        name, rank = f"slot {slot}", adapter.rank
        targets = sorted({path.rpartition(".")[2] for path in adapter.modules})
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
        if model is None:
            model = get_peft_model(loaded.model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        for path, pair in adapter.modules.items():
            assert pair.scaling == 2.0
            layer = model.base_model.model.get_submodule(path)
            for part, values in ((layer.lora_A[name], pair.a_RI), (layer.lora_B[name], pair.b_OR)):
                part.weight.data = values.to(DEVICE, DTYPE)
    return model.eval()


@contextmanager
def scaled(model: Any, uses: Uses) -> Iterator[None]:
    if not uses:
        with model.disable_adapter():
            yield
        return
    model.base_model.set_adapter([f"slot {slot}" for slot, _ in uses])
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for slot, scale in uses:
                layer.set_scale(f"slot {slot}", scale)
    yield


def test_recorded_steps_give_the_bits_of_direct_ones(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rows fill their shape, so both run the same products on the same rows."""
    recorded = greedy(bench.triton, EVERY[:4], 8)
    monkeypatch.setattr(triton_model.DecodeGraphs, "run", lambda *given: None)
    assert greedy(bench.triton, EVERY[:4], 8) == recorded
    assert bench.triton.path == "triton", "recording failed, see the log"


def test_a_row_stays_the_same_beside_others(bench: Bench) -> None:
    """In tokens where the choice is clear: the base's own products depend on the number of
    rows, as bitsandbytes and cuBLAS choose their kernels by it."""
    together = score(bench.triton, EVERY, chunk=1)
    for index, uses in enumerate(EVERY):
        others: list[Uses] = [()] * index
        alone = score(bench.triton, [*others, uses], chunk=1)[index]
        assert alone == pytest.approx(together[index], abs=LOGPROB_TOLERANCE)


def test_adapters_come_while_steps_run(bench: Bench) -> None:
    """Fetched and brought by another thread; what runs meanwhile, and what they then say, is what
    it would have been."""
    expected = greedy(bench.triton, EVERY[:4], 16)
    stop, brought = threading.Event(), []

    def fetch() -> None:
        while not stop.is_set():
            brought.append(bench.triton.prepare(bench.adapters[3]))
            del brought[:-1]

    thread = threading.Thread(target=fetch)
    thread.start()
    try:
        for _ in range(5):
            assert greedy(bench.triton, EVERY[:4], 16) == expected
    finally:
        stop.set()
        thread.join()
    before = score(bench.triton, [((4, 1.0),)], chunk=1)
    bench.triton.place(4, brought[0])
    assert score(bench.triton, [((4, 1.0),)], chunk=1) == before


def test_the_base_takes_the_fused_4_bit_product(bench: Bench) -> None:
    """What bitsandbytes asks for: see server/decisions on the GPU's path."""
    layers = [m for m in bench.loaded.model.modules() if isinstance(m, Linear4bit)]
    assert layers
    for layer in layers:
        state = layer.weight.quant_state
        assert layer.compute_dtype is DTYPE and state.quant_type == "nf4"
        assert layer.in_features % state.blocksize == 0
        assert not state.nested or state.state2.blocksize == 256
