"""An executor on Triton's kernels, with decode steps that are recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lorry.model.drawing import TorchDrawing
from lorry.model.executor import Executor
from lorry.model.graphs import CudaRecord, Record, repeated
from lorry.model.logits import Logits
from lorry.model.packed import PackedModel
from lorry.model.paths import FirstPass, Kernels, build
from lorry.model.triton_model import TritonModel
from support.executor_driver import SIZES, ExecutorDriver


class CountedRecord:
    """`Record` that counts: CUDA's graphs on a GPU, and on a CPU the same step again over the
    same buffers."""

    def __init__(self, device_type: str) -> None:
        self.recorded = 0
        self.repeated = 0
        self._record: Record = CudaRecord() if device_type == "cuda" else repeated

    def __call__(self, run: Callable[[], Logits]) -> tuple[Logits, Callable[[], None]]:
        self.recorded += 1
        logits, repeat = self._record(run)

        def counted() -> None:
            self.repeated += 1
            repeat()

        return logits, counted


class TritonDriver(ExecutorDriver):
    """On the device that the tiny model is on; where that is a CPU, kernels are interpreted."""

    def start(self, found: FirstPass, kernels: Kernels, is_checked: bool) -> Executor:
        paths = build(self.loaded, found, kernels, SIZES).paths
        device, dtype = self.loaded.device, self.loaded.dtype
        assert isinstance(paths.pooled, PackedModel)
        self.record = CountedRecord(device.type)
        triton = TritonModel(
            paths.pooled, paths.cache, paths.lora, device=device, dtype=dtype, record=self.record
        )
        return Executor(replace(paths, general=triton, upload=triton.bring), TorchDrawing())
