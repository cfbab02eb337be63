"""The compiled step for the tests: each instruction set by itself, in a runner with a chosen
number of threads."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from lorry.model.compiled import library, recipe
from lorry.model.compiled.compiled_model import CompiledModel
from lorry.model.compiled.pack import PackedLinear
from lorry.model.compiled.packer import Packer
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

EMULATED = "amx, emulated"
"""What AMX runs, on a processor with AVX-512 alone: `tiles.h`'s plain C in place of tiles."""

VARIANTS = (*recipe.INSTRUCTIONS, EMULATED)


def compiled(instructions: str, folder: Path) -> ctypes.CDLL:
    """One of `VARIANTS`: the library that was installed, or, where that is none of these sources,
    one built in `folder`. Skips the test where neither is possible."""
    needed = "avx512" if instructions == EMULATED else instructions
    if needed not in library.instructions():
        pytest.skip(f"this processor has no {needed}")
    return library.load(library_file(instructions, folder))


def runnable() -> list[str]:
    """Those of `VARIANTS` that run here."""
    here = library.instructions()
    return [*here, EMULATED] if "avx512" in here else [*here]


def library_file(instructions: str, folder: Path) -> Path:
    """The file of `compiled`, for this processor or not."""
    if instructions == EMULATED:
        return _emulated(folder)
    name = recipe.file_name(instructions)
    try:
        library.load(library.FOLDER / name)
        return library.FOLDER / name
    except library.Missing as missing:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip(f"no compiled step ({missing}) and no C compiler")
    if not (folder / name).exists():
        command = recipe.command([compiler], instructions, folder / name)
        subprocess.run(command, check=True)
    return folder / name


def _emulated(folder: Path) -> Path:
    compiler, target = shutil.which("cc"), folder / "step_emulated.so"
    if compiler is None:
        pytest.skip("no C compiler")
    if not target.exists():
        command = recipe.command([compiler, "-DLORRY_TILES_EMULATED"], "avx512", target)
        subprocess.run(command, check=True)
    return target


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


@contextmanager
def in_codes() -> Iterator[None]:
    """Bases in 8 bits that are loaded here read two rows of codes everywhere, as their heads do.

    These have 14 bits: a difference in a last digit is no difference in an answer, and what is
    wrong elsewhere in a step shows. Chunks have 8, and in a model as small as the tests' one number
    that is rounded the other way moves log-probabilities by 0.1.
    """
    as_served = Packer.int8

    def int8(
        self: Packer, codes: Tensor, scale: Tensor, bias: Tensor | None, *, is_head: bool = False
    ) -> PackedLinear:
        return as_served(self, codes, scale, bias, is_head=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Packer, "int8", int8)
        yield


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
