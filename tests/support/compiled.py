"""The compiled step for the tests: each instruction set by itself, in a runner with a chosen
number of threads."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lorry.model.compiled import library, recipe
from lorry.model.compiled.compiled_model import CompiledModel
from lorry.model.drawing import TorchDrawing
from lorry.model.executor import Executor
from lorry.model.packed import PackedModel
from lorry.model.paths import FirstPass, Kernels, build
from support.executor_driver import (
    BLOCK_SIZE,
    MAX_RANK,
    NUM_BLOCKS,
    NUM_SLOTS,
    SIZES,
    ExecutorDriver,
)

MAX_TOKENS = 256


def compiled(instructions: str, folder: Path) -> ctypes.CDLL:
    """The library that was installed, or, where that is none of these sources, one built in
    `folder`. Skips the test where neither is possible."""
    if instructions not in library.instructions():
        pytest.skip(f"this processor has no {instructions}")
    name = recipe.file_name(instructions)
    try:
        return library.load(library.FOLDER / name)
    except library.Missing as missing:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip(f"no compiled step ({missing}) and no C compiler")
    if not (folder / name).exists():
        subprocess.run(recipe.command([compiler], instructions, folder / name), check=True)
    return library.load(folder / name)


def require_compiled_step() -> None:
    """Skips the test where the compiled step cannot be built; fails it where it could be, and was
    not, or from other sources: the tests of half the house would be skipped unseen."""
    try:
        library.find()
    except library.Missing as missing:
        if library.instructions() and shutil.which("cc") is not None:
            pytest.fail(f"{missing}: build it with python server/build_compiled.py")
        pytest.skip(f"no compiled step ({missing}), and no C compiler for this processor")


def forbid_packed(patch: pytest.MonkeyPatch, but: object = None) -> None:
    """No row may run on the packed model beside the compiled step; on `but`, another
    runner's, they may."""
    run = PackedModel.run

    def only_theirs(self: PackedModel, *arguments: object) -> object:
        assert self is but, "a row ran on the packed model"
        return run(self, *arguments)  # type: ignore[arg-type]

    patch.setattr(PackedModel, "run", only_theirs)


class CompiledDriver(ExecutorDriver):
    """An executor on the compiled step."""

    def __init__(
        self,
        folder: Path,
        built: ctypes.CDLL,
        *,
        num_threads: int = 1,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self._built, self._max_tokens = built, max_tokens
        super().__init__(folder, quantization="int8", kernels="compiled", threads=num_threads)

    def start(self, found: FirstPass, kernels: Kernels, is_checked: bool) -> Executor:
        assert kernels.described is not None
        paths = build(self.loaded, found, replace(kernels, kind="torch"), SIZES).paths
        self.model = CompiledModel(
            self._built,
            self.loaded,
            kernels.described,
            paths.cache,
            paths.virtual_tokens,
            num_slots=NUM_SLOTS,
            max_tokens=self._max_tokens,
            max_context=NUM_BLOCKS * BLOCK_SIZE,
            max_rank=MAX_RANK,
            num_threads=kernels.threads,
        )
        return Executor(replace(paths, compiled=self.model), TorchDrawing())
