"""Imports bitsandbytes without TorchDynamo and Inductor, which it does not need here."""

from __future__ import annotations


def import_bitsandbytes() -> None:
    """Call it before anything else imports bitsandbytes.

    bitsandbytes wraps one of its functions by `torch.compile` as it is imported, which imports
    TorchDynamo and Inductor: a second of processor time and more at each start. It takes the plain
    function where that fails, which is all that a server needs.
    """
    import torch

    compile_, torch.compile = torch.compile, _refuse  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_


def _refuse(*arguments: object, **options: object) -> object:
    raise RuntimeError("not while bitsandbytes is imported")
