"""A runner on Triton's kernels, with decode steps that are recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lorry.model.cuda import CudaModel
from lorry.model.graphs import CudaRecord, Record, repeated
from lorry.model.logits import Logits
from support.runner_driver import RunnerDriver


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


class FusedDriver(RunnerDriver):
    """On the device that the tiny model is on; where that is a CPU, kernels are interpreted."""

    def __init__(self, folder: Path, *, quantization: str = "none") -> None:
        super().__init__(folder, quantization=quantization)
        device, dtype = self.loaded.device, self.loaded.dtype
        self.record = CountedRecord(device.type)
        self.runner.go_fused(
            lambda packed, cache, lora, special: CudaModel(
                packed,
                cache,
                lora,
                device=device,
                dtype=dtype,
                special=special,
                record=self.record,
            )
        )
