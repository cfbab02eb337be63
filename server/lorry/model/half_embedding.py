"""A table of embeddings that stays in the 16 bits of its file, beside activations in fp32.

A bfloat16 or half-precision number is an fp32 number too, so nothing is rounded: the rows that are
looked up are widened, and the answers are those of the widened table, bit for bit. Of a base with a
large vocabulary the table in fp32 would be most of the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorry.model.quantized_linear import QuantizedLinear

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
"""Names in safetensors."""

_PROBE = 8
"""Rows that are looked up to see what an embedding does to them."""


class HalfEmbedding(nn.Embedding):
    """`[...]` ids to `[..., H]` in fp32: rows of the table times `embed_scale`."""

    def __init__(self, weight: nn.Parameter, embed_scale: float) -> None:
        rows, width = weight.shape
        super().__init__(rows, width, _weight=weight.data, _freeze=True)
        self.embed_scale = embed_scale

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.weight).float()
        return rows if self.embed_scale == 1.0 else rows * self.embed_scale


def dtype_in_files(files: Iterable[str | Path], shape: torch.Size) -> torch.dtype | None:
    """bfloat16 or float16 where every tensor of that shape in the files of a base has it; else
    None. The table is found by its shape, as its name there may be another than in the model."""
    found = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118, a handle is not a mapping
                tensor = file.get_slice(key)
                if tensor.get_shape() == list(shape):
                    found.add(tensor.get_dtype())
    return _DTYPES.get(found.pop()) if len(found) == 1 else None


def expect_half(model: PreTrainedModel, files: Iterable[str | Path]) -> None:
    """Have transformers load the input embeddings and the head of `model`, which is empty and of
    fp32, as they are in `files`: it gives a tensor the dtype that it finds in the model. `halve`
    has to follow."""
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Embedding) and type(module) is not nn.Linear:
            continue
        if isinstance(weight, nn.Parameter) and weight.is_meta and weight.dtype is torch.float32:
            dtype = dtype_in_files(files, weight.shape)
            if dtype is not None:
                module.weight = nn.Parameter(weight.data.to(dtype), requires_grad=False)


def dtype_beside_table(model: PreTrainedModel) -> torch.dtype:
    """Of a base's parameters, and so of its activations, whatever its embeddings are kept in."""
    table = model.get_input_embeddings().weight
    others = (p.dtype for p in model.parameters() if p.is_floating_point() and p is not table)
    found: torch.dtype = next(others, torch.float32)
    return found


def halve(model: PreTrainedModel, folder: Path) -> None:
    """Keep the input embeddings of `model`, a base in fp32 from the files in `folder`, as they are
    there. They stay in fp32, or come to be in it, where another module than a `QuantizedLinear`
    reads the same parameter, or where they are more than rows times a factor."""
    module = model.get_input_embeddings()
    if isinstance(module, nn.Embedding) and dtype_beside_table(model) is torch.float32:
        _halve(model, module, folder)
    for one in (model.get_input_embeddings(), model.get_output_embeddings()):
        plain = isinstance(one, nn.Embedding | nn.Linear) and not isinstance(one, HalfEmbedding)
        if plain and one.weight.dtype in _DTYPES.values():
            one.weight.data = one.weight.data.float()


def _halve(model: PreTrainedModel, module: nn.Embedding, folder: Path) -> None:
    weight = module.weight
    dtype = weight.dtype
    if dtype is torch.float32:
        dtype = dtype_in_files(folder.glob("*.safetensors"), weight.shape) or dtype
    scale = _scale_of(module)
    users = [m for m in model.modules() if getattr(m, "weight", None) is weight]
    alone = all(user is module or isinstance(user, QuantizedLinear) for user in users)
    if dtype not in _DTYPES.values() or scale is None or not alone:
        return
    half = HalfEmbedding(nn.Parameter(weight.data.to(dtype), False), scale)
    for path in [path for path, m in model.named_modules() if m is module]:
        model.set_submodule(path, half)
    for user in users:
        if isinstance(user, QuantizedLinear):
            # A head that transformers has tied to the table; it has a weight of its own.
            user.weight = nn.Parameter(torch.empty(0, user.in_features), requires_grad=False)


def _scale_of(module: nn.Embedding) -> float | None:
    """Return the exact factor of `module` on its rows, or None if it does something else."""
    ids = torch.arange(min(_PROBE, module.num_embeddings))
    weight = module.weight
    rows = weight.data[ids].float()
    try:
        with torch.inference_mode():
            module.weight = nn.Parameter(rows, requires_grad=False)
            answers = module(ids)
    finally:
        module.weight = weight
    return next((one for one in _scales(module) if torch.equal(rows * one, answers)), None)


def _scales(module: nn.Module) -> Iterator[float]:
    yield 1.0
    yield from (value for value in vars(module).values() if isinstance(value, float))
    for buffer in module.buffers(recurse=False):
        if buffer.numel() == 1:
            yield float(buffer)
