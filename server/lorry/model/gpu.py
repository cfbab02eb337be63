"""Which kernels run on a CUDA device: decided once at start-up, and said.

Triton comes with PyTorch's CUDA builds, not with the others, and not on every platform. So
this file does not import it, and `lorry.model.cuda`, which does, is imported where there is
a device.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec

from lorry.errors import UnsupportedModel
from lorry.model import selfcheck
from lorry.model.loader import LoadedModel
from lorry.model.runner import Runner

logger = logging.getLogger(__name__)


def choose(loaded: LoadedModel, runner: Runner) -> str:
    """Give `runner` Triton's kernels if they run here and are right; what was decided, for
    people."""
    why = _try(loaded, runner)
    if why is None:
        return f"{runner.path}'s kernels"
    logger.warning("PyTorch's operations run the steps, not Triton's kernels: %s", why)
    return f"PyTorch's operations; not Triton's kernels: {why}"


def _try(loaded: LoadedModel, runner: Runner) -> str | None:
    """Switch to Triton's kernels; or leave the runner as it was, and say why."""
    if runner.unpackable is not None:
        return f"rows are padded: {runner.unpackable}"
    if find_spec("triton") is None:
        return "triton is not installed; PyTorch's CUDA builds bring it on Linux"
    from lorry.model import cuda

    why = cuda.probe(
        runner.layer_shapes,
        dtype=loaded.dtype,
        device=loaded.device,
        block_size=runner.cache.block_size,
    )
    if why is not None:
        return why
    runner.go_fused(
        lambda packed, cache, lora, special: cuda.CudaModel(
            packed, cache, lora, device=loaded.device, dtype=loaded.dtype, special=special
        )
    )
    try:
        selfcheck.check(runner, loaded)
    except UnsupportedModel as error:
        runner.leave_fused()
        return str(error)
    return None
