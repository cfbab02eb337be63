"""An adapter's files, spoilt on purpose, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import WEIGHTS_FILE, inspect

Tensors = dict[str, Tensor]
Edit = Callable[[Tensors], object]


def spoil(folder: Path, change: Edit) -> None:
    """Rewrites the weights as `change` leaves them."""
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS_FILE)


def problems(folder: Path, layout: BaseLayout, max_rank: int = 64) -> tuple[str, ...]:
    """Why the folder is refused, which it must be."""
    with pytest.raises(InvalidAdapter) as caught:
        inspect(folder, layout, max_rank)
    return caught.value.problems


def told(folder: Path, layout: BaseLayout, max_rank: int = 64) -> str:
    """The same as one line."""
    return "; ".join(problems(folder, layout, max_rank))
