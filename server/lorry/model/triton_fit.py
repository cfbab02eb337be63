"""Whether Triton's kernels can run a base here.

PyTorch's CUDA builds bring Triton, the others do not, and not on every platform: so neither this
file nor `lorry.model.paths` imports it, nor `lorry.model.triton_model`, which does.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from lorry.model.base_loader import LoadedModel
from lorry.model.kv_cache import LayerShape


def unfit_for_triton(
    loaded: LoadedModel, shapes: Iterable[LayerShape], block_size: int
) -> str | None:
    """Return why the kernels cannot run, or None if all of them run and are right. `shapes` are
    those of its layers."""
    if find_spec("triton") is None:
        return "triton is not installed; PyTorch's CUDA builds bring it on Linux"
    shapes = tuple(shapes)
    if any(shape.sinks for shape in shapes):
        return "its attention has sinks"
    from lorry.model import triton_model

    return triton_model.probe(
        shapes, dtype=loaded.dtype, device=loaded.device, block_size=block_size
    )
