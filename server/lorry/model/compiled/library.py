"""Finds the compiled step for this processor."""

from __future__ import annotations

import ctypes
import platform
import sys
from contextlib import suppress
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_long, c_void_p
from functools import cache
from pathlib import Path

import torch

from lorry.model.compiled import recipe
from lorry.model.compiled.structs import (
    Layer,
    Linear,
    LinearSlots,
    Mixture,
    Model,
    Pairs,
    StepArguments,
)

FOLDER = Path(__file__).parent

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""SYS_arch_prctl, ARCH_REQ_XCOMP_PERM and the number of AMX's tiles in XSAVE's state: see
Documentation/arch/x86/xstate.rst of Linux."""


class Missing(Exception):
    """There is no compiled step to run here; the message says why, and what to do."""


def instructions() -> tuple[str, ...]:
    """Those of `recipe.INSTRUCTIONS` that this processor has, best first."""
    capability = torch.backends.cpu.get_cpu_capability()
    avx512 = capability == "AVX512" and torch.cpu._is_vnni_supported()
    has = {
        "amx": avx512 and {"amx_tile", "amx_int8"} <= processor_flags() and _tiles_permitted(),
        "avx512": avx512,
        # Which torch does not tell.
        "avxvnni": capability in ("AVX512", "AVX2") and "avx_vnni" in processor_flags(),
        "avx2": capability in ("AVX512", "AVX2"),
    }
    return tuple(name for name in recipe.INSTRUCTIONS if has[name])


def processor_flags() -> frozenset[str]:
    """What the system says that the processor can; nothing where it says nothing."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("flags"):
                return frozenset(line.split())
    return frozenset()


@cache
def _tiles_permitted() -> bool:
    """Asks the kernel for AMX's tiles, for every thread of this process and for its children. It
    refuses if some thread handles signals on a stack that is too small for them."""
    asked = ctypes.CDLL(None).syscall(
        c_long(_ARCH_PRCTL), c_long(_REQUEST_PERMISSION), c_long(_TILE_DATA)
    )
    return bool(asked == 0)


def find(folder: Path = FOLDER) -> tuple[str, ctypes.CDLL]:
    """The best library of those that were built, after its instruction set.

    Raises:
        Missing: there is none, or it cannot run here.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Missing("it is made for Linux on x86-64 only")
    names = instructions()
    if not names:
        raise Missing("this processor has no AVX2")
    # An old compiler may know the second best only.
    built = [name for name in names if (folder / recipe.file_name(name)).is_file()]
    name = (built or names)[0]
    return name, load(folder / recipe.file_name(name))


def load(path: Path) -> ctypes.CDLL:
    """One library, its functions declared. Raises Missing."""
    if not path.is_file():
        raise Missing("it was not built; install a C compiler and then Lorry again")
    try:
        library = ctypes.CDLL(str(path))
        library.lorry_sources.restype = c_char_p
        made_from = library.lorry_sources().decode()
    except (OSError, AttributeError) as error:
        raise Missing(f"it cannot be loaded ({error}); install Lorry again") from error
    if made_from != recipe.sources():
        raise Missing("it was built from other sources than these; install Lorry again")
    library.lorry_engine.argtypes = [POINTER(Model), c_int32, c_int32, c_int32, c_int32]
    library.lorry_engine.restype = c_void_p
    library.lorry_engine_free.argtypes = [c_void_p]
    library.lorry_engine_free.restype = None
    library.lorry_run.argtypes = [c_void_p, POINTER(StepArguments)]
    library.lorry_run.restype = None
    library.lorry_read.argtypes = [c_void_p, c_void_p, c_void_p, c_int32]
    library.lorry_read.restype = c_int64
    library.lorry_module.argtypes = [
        *(c_void_p, POINTER(Linear), POINTER(LinearSlots), POINTER(Pairs)),
        *(c_void_p, c_void_p, c_int32),
    ]
    library.lorry_module.restype = None
    library.lorry_attend.argtypes = [
        *(c_void_p, POINTER(Layer), c_int32, POINTER(StepArguments)),
        *(c_void_p, c_void_p),
    ]
    library.lorry_attend.restype = None
    library.lorry_pack.argtypes = [
        *(c_void_p, c_void_p, c_float),
        *(c_int32, c_int32, c_int32),
        *(c_void_p, c_void_p),
    ]
    library.lorry_pack.restype = c_int32
    library.lorry_quantize4.argtypes = [
        *(c_void_p, c_int64, c_int32),
        *(c_void_p, c_void_p, c_void_p, c_void_p),
    ]
    library.lorry_quantize4.restype = None
    library.lorry_quantize8.argtypes = [c_void_p, c_int32, c_int32, c_void_p, c_void_p]
    library.lorry_quantize8.restype = None
    library.lorry_pack8.argtypes = [c_void_p, c_int32, c_int32, c_void_p, c_void_p]
    library.lorry_pack8.restype = None
    library.lorry_pack4.argtypes = [
        *(c_void_p, c_void_p, c_int32, c_int32),
        *(c_void_p, c_void_p),
    ]
    library.lorry_pack4.restype = None
    library.lorry_keep_mass.argtypes = [
        *(c_void_p, c_void_p, c_float, c_float),
        *(c_int32, c_void_p, c_void_p),
    ]
    library.lorry_keep_mass.restype = None
    library.lorry_draw.argtypes = [c_void_p, c_float, c_int32, c_double, c_void_p]
    library.lorry_draw.restype = c_int32
    library.lorry_mixture.argtypes = [c_void_p, POINTER(Mixture), c_void_p, c_void_p, c_int32]
    library.lorry_mixture.restype = None
    library.lorry_linear.argtypes = [c_void_p, POINTER(Linear), c_void_p, c_void_p, c_int32]
    library.lorry_linear.restype = None
    return library
