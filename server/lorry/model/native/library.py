"""Finds the compiled step for this processor."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int32, c_void_p
from pathlib import Path

import torch

from lorry.model.native.structs import Linear, Model, Step

FLAGS = {
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512",
    "avx2": "-mavx2",
}
"""Instruction sets that the step is built for, best first, and the compiler's flags for
each; the build hook reads them here."""


def file_name(instructions: str) -> str:
    return f"step_{instructions}.so"


def instructions() -> str | None:
    """The best of FLAGS that this processor has; None where it has none."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and torch.cpu._is_vnni_supported():
        return "avx512"
    return "avx2" if capability in ("AVX512", "AVX2") else None


def find() -> ctypes.CDLL | None:
    """The library, its functions declared; None where it was not built or cannot run here."""
    best = instructions()
    path = Path(__file__).parent / file_name(best) if best else None
    if path is None or not path.is_file():
        return None
    library = ctypes.CDLL(str(path))
    library.lorry_engine.argtypes = [POINTER(Model), c_int32, c_int32, c_int32, c_int32]
    library.lorry_engine.restype = c_void_p
    library.lorry_engine_free.argtypes = [c_void_p]
    library.lorry_engine_free.restype = None
    library.lorry_run.argtypes = [c_void_p, POINTER(Step)]
    library.lorry_run.restype = None
    library.lorry_linear.argtypes = [c_void_p, POINTER(Linear), c_void_p, c_void_p, c_int32]
    library.lorry_linear.restype = None
    return library
