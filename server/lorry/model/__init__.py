"""The model: loaded, quantized, fed a batch, sampled. The only room where torch works."""

from __future__ import annotations

import torch


def _import_bitsandbytes() -> None:
    """bitsandbytes wraps one of its functions by `torch.compile` as it is imported, which imports
    TorchDynamo and Inductor: a third of the imports' time. It takes the plain function where that
    fails, which is all that a server needs."""
    compile_, torch.compile = torch.compile, _refuse  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_


def _refuse(*arguments: object, **options: object) -> object:
    raise RuntimeError("not while bitsandbytes is imported")


_import_bitsandbytes()
