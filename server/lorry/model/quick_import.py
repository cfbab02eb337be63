"""Imports torch, transformers and bitsandbytes without TorchDynamo, Inductor and DTensor.

A server uses none of these. transformers and bitsandbytes import them for a handful of decorators
and type checks: two seconds of processor time at each start, and 100 MiB.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_DYNAMO = "torch._dynamo"


def import_libraries() -> None:
    """Call it before anything else imports transformers or bitsandbytes. Afterwards
    `torch.compile` and `torch._dynamo` are what they always are."""
    import torch

    with without_dynamo():
        _without_distributed(torch)
        importlib.import_module("transformers.modeling_utils")
        importlib.import_module("transformers.masking_utils")
        compile_, torch.compile = torch.compile, _refuse  # type: ignore[assignment]
        try:
            # It compiles one of its functions as it is imported, and takes the plain one where
            # that fails.
            importlib.import_module("bitsandbytes")
        finally:
            torch.compile = compile_


@contextmanager
def without_dynamo() -> Iterator[None]:
    """For the time, `torch._dynamo` is a package with the decorators that transformers uses, and
    torch for its operations on empty models. They leave functions as they are. The modules of the
    real one can be imported, each alone; whoever asks for anything else gets the real one."""
    import torch

    if _DYNAMO in sys.modules:
        yield
        return
    stand_in = ModuleType(_DYNAMO)
    stand_in.__path__ = [str(Path(str(torch.__file__)).parent / "_dynamo")]
    for decorator in ("disable", "assume_constant_result", "allow_in_graph"):
        setattr(stand_in, decorator, _unchanged)

    def real(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _forget(torch, stand_in)
        return getattr(importlib.import_module(_DYNAMO), name)

    stand_in.__getattr__ = real  # type: ignore[method-assign]
    sys.modules[_DYNAMO] = stand_in
    try:
        yield
    finally:
        _forget(torch, stand_in)


def _forget(torch: ModuleType, stand_in: ModuleType) -> None:
    if sys.modules.get(_DYNAMO) is stand_in:
        del sys.modules[_DYNAMO]
    if vars(torch).get("_dynamo") is stand_in:
        del torch._dynamo


def _without_distributed(torch: ModuleType) -> None:
    """transformers looks once whether torch can be distributed, and believes it from then on."""
    checks = importlib.import_module("transformers.utils.import_utils")
    available, torch.distributed.is_available = torch.distributed.is_available, bool
    try:
        checks.is_torch_distributed_available()
    finally:
        torch.distributed.is_available = available


def _unchanged(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
    return _unchanged if function is None else function


def _refuse(*arguments: object, **options: object) -> object:
    raise RuntimeError("not while bitsandbytes is imported")
