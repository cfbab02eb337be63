"""Which kernels a CUDA device gets, and what is said of it. The device is a CPU here, and the
kernels are interpreted; the decision is the same."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorry.model import paths, triton_fit
from lorry.model.executor import Executor
from lorry.model.graphs import repeated
from lorry.model.kv_cache import LayerShape
from lorry.model.paths import FirstPass, Kernels
from lorry.model.sight import Sight
from support.device import DEVICE
from support.executor_driver import SIZES, Ask, ExecutorDriver, token_ids
from support.prompts import random_prompt

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")

from lorry.model import paged, triton_model
from lorry_adapters.lora.kernels import triton_kernels

SHAPES = [
    LayerShape(2, 16, 16),
    LayerShape(3, 48, 24, Sight(20)),
    LayerShape(2, 16, 16),
]


class GpuDriver(ExecutorDriver):
    """Whatever the device: on the kernels that a GPU gets, checked."""

    def start(self, found: FirstPass, kernels: Kernels, is_checked: bool) -> Executor:
        self.said: list[str] = []
        kernels = paths.choose_for_gpu(self.loaded, found, block_size=SIZES.block_size)
        return paths.checked(self.loaded, found, kernels, SIZES, self.said.append)


Start = Callable[[], GpuDriver]


@pytest.fixture
def start(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Start:
    if DEVICE.type != "cuda":
        monkeypatch.setattr(triton_model, "CudaRecord", lambda: repeated)
    return lambda: GpuDriver(tiny_model("llama"))


# ---- the probe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_right_kernels_pass(dtype: torch.dtype) -> None:
    assert triton_model.probe(SHAPES, dtype=dtype, device=DEVICE, block_size=16) is None


def probed(shapes: list[LayerShape] = SHAPES) -> str:
    why = triton_model.probe(shapes, dtype=torch.float32, device=DEVICE, block_size=16)
    assert why is not None
    return why


def test_a_wrong_delta_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = triton_kernels.add_delta

    def forgets_the_last_pair(y_TO, x_TI, a_SRI, b_SRO, rank_S, table, **rest):  # type: ignore[no-untyped-def]
        table.scale_P[-1] = 0
        right(y_TO, x_TI, a_SRI, b_SRO, rank_S, table, **rest)

    monkeypatch.setattr(triton_kernels, "add_delta", forgets_the_last_pair)
    assert probed().startswith("the adapters' kernels differ from PyTorch's by ")


def test_a_wrong_context_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = triton_model.tables_of

    def forgets_the_new_token(plan):  # type: ignore[no-untyped-def]
        tables = right(plan)
        tables.length_B.sub_(1)
        return tables

    monkeypatch.setattr(triton_model, "tables_of", forgets_the_new_token)
    assert probed().startswith("attention over 2 heads of 16 differ from PyTorch's by ")


def test_numbers_that_are_none_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(y_TO: torch.Tensor, *rest: object, **more: object) -> None:
        y_TO.fill_(float("nan"))

    monkeypatch.setattr(triton_kernels, "add_delta", none)
    assert probed() == "the adapters' kernels differ from PyTorch's by nan"


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise ValueError("out of resource: shared memory\nand a long story")

    monkeypatch.setattr(paged.PagedSingles, "__call__", fail)
    assert probed() == (
        "attention over 2 heads of 16 cannot run: ValueError: out of resource: shared memory"
    )


# ---- the decision


def test_what_is_right_serves_and_is_said(
    start: Start, peft_adapter: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        driver = start()
    assert driver.said == ["steps run on triton's kernels"]
    assert driver.executor.paths.kernels == "triton"
    assert not caplog.records
    ask = Ask([(peft_adapter("llama", "plain"), 1.0)], random_prompt(5, 1))
    (mine,) = driver.greedy([ask], 3)
    assert len(token_ids(mine)) == 3


def stays_with_torch(start: Start, caplog: pytest.LogCaptureFixture, why: str) -> None:
    with caplog.at_level(logging.WARNING):
        driver = start()
    (said,) = driver.said
    begin = "steps run on PyTorch's operations; not Triton's kernels: "
    assert said.startswith(begin) and why in said
    assert why in caplog.text
    served = driver.executor.paths
    assert served.kernels == "torch" and served.upload is None
    assert all(layer.kernel is None for layer in served.lora.layers.values())


def test_without_triton(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(triton_fit, "find_spec", lambda name: None)
    stays_with_torch(start, caplog, "triton is not installed")


def test_a_failed_probe(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        triton_model, "probe", lambda *arguments, **more: "the adapters' kernels differ"
    )
    stays_with_torch(start, caplog, "the adapters' kernels differ")


def test_a_failed_self_check(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All is well one by one, and wrong together: the scratch cell is somebody's."""
    right = triton_model.to_device

    def shifted(inputs, device):  # type: ignore[no-untyped-def]
        made = right(inputs, device)
        made.attention.write_T.copy_(made.attention.write_T.flip(0))
        return made

    monkeypatch.setattr(triton_model, "to_device", shifted)
    stays_with_torch(start, caplog, "is not served")


def test_an_adapter_of_another_kind_is_never_recorded(
    start: Start, peft_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = start()
    folder = peft_adapter("llama", "plain")
    ask = Ask([(folder, 1.0)], random_prompt(5, 2))
    (expected,) = driver.greedy([ask], 3)
    driver.executor.paths.lora.beyond_pairs.add(driver.slot_of(folder))
    steps: list[object] = []
    record = triton_model.DecodeGraphs.run
    monkeypatch.setattr(
        triton_model.DecodeGraphs, "run", lambda *given: steps.append(given) or record(*given)
    )
    assert token_ids(driver.greedy([ask], 3)[0]) == token_ids(expected)
    assert steps == []


def test_a_server_on_a_cpu_needs_no_triton() -> None:
    """Only PyTorch's CUDA builds bring it."""
    code = "import sys; sys.modules['triton'] = None; import lorry.bootstrap"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
