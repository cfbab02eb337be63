"""Which tensor of a GGUF file is which of transformers' model, and what turns one into the other.

transformers knows the names, and what the files have in another order or with another offset: for
most families one function that is given the numbers of one tensor. Given the numbers of rows in
place of them, it tells where the rows of the blocks go.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, modeling_gguf_pytorch_utils
from transformers.pytorch_utils import Conv1D

from lorry.model.gguf_blocks import StoredTensor


class UnmappedTensor(Exception):
    """What keeps the tensors from going over one by one, for people."""


def stored_tensors(
    file: Path, reader: GGUFReader, model: PreTrainedModel, *, dense: bool
) -> list[StoredTensor]:
    """The tensors of the empty `model`, each made of one of `file`. Linears in blocks, unless they
    are to be `dense`. Raises UnmappedTensor."""
    architecture = str(reader.fields["general.architecture"].contents())
    processor, names = _names(file, architecture, model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, StoredTensor] = {}
    for tensor in reader.tensors:
        # All are asked about: one that is not in the model may be a part of one that is.
        process = partial(_processed, processor, tensor.name, names)
        rows = _numbers_of_rows(tensor)
        made = process(rows)
        name = names.get(tensor.name)
        if name is None:
            continue
        if shapes.get(name) != made.shape:
            raise UnmappedTensor(f"{tensor.name} is {[*made.shape]}, not {[*shapes.get(name, ())]}")
        order = None if made is rows else _order(made, rows)
        processed = None if made is rows or order is not None else process
        plain = tensor.tensor_type is GGMLQuantizationType.F32
        kept = not (dense or plain or processed) and _is_linear(model, name)
        found[name] = StoredTensor(name, made.shape, tensor, order, processed, dense=not kept)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    there = {id(parameters[name]) for name in found if name in parameters}
    tied = {name for name, parameter in parameters.items() if id(parameter) in there}
    missing = set(shapes) - set(found) - tied
    if missing:
        raise UnmappedTensor(f"{min(missing)} is no tensor of the file")
    return list(found.values())


def _names(file: Path, architecture: str, model: PreTrainedModel) -> tuple[Any, Mapping[str, str]]:
    """transformers' processor for the architecture, and its names of the file's tensors."""
    library: Any = modeling_gguf_pytorch_utils
    try:
        from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

        if architecture in GGUF_ARCHS:
            raise UnmappedTensor(f"transformers reads {architecture} in another way")
    except ImportError:
        pass
    try:
        config = library.load_gguf_checkpoint(str(file))["config"]
        kind = library.TENSOR_PROCESSORS.get(architecture, library.TensorProcessor)
        processor = kind(config=config)
        return processor, library.get_gguf_hf_weights_map(model, processor)
    except (AttributeError, TypeError) as error:
        raise UnmappedTensor(
            f"this release of transformers has no names of tensors ({error})"
        ) from error


def _processed(
    processor: Any, name: str, names: Mapping[str, str], values: NDArray[Any]
) -> NDArray[Any]:
    """What transformers makes of `values`; `values` itself if that is nothing."""
    try:
        with np.errstate(all="ignore"):
            result = processor.process(
                weights=values,
                name=name,
                tensor_key_mapping=names,
                parsed_parameters={"tensors": {}},
            )
    except KeyError as error:
        raise UnmappedTensor(f"{name} is part of {error}, which is not in the model") from error
    if result.name != name:
        raise UnmappedTensor(f"{name} is not one tensor in transformers")
    made: NDArray[Any] = result.weights
    return made


def _numbers_of_rows(tensor: ReaderTensor) -> NDArray[np.float32]:
    """In the shape of the tensor, each number is that of its row. Takes no memory."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    rows = np.arange(shape[0], dtype=np.float32)
    return np.broadcast_to(rows.reshape(-1, *[1] * (len(shape) - 1)), shape)


def _order(made: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """Which rows lie where; None if `made` is anything else than `rows` in another order."""
    if made.ndim != 2 or made.shape != rows.shape or (made != made[:, :1]).any():
        return None
    order = made[:, 0].astype(np.int64)
    return order if np.array_equal(np.sort(made[:, 0]), rows[:, 0]) else None


def _is_linear(model: PreTrainedModel, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(model.get_submodule(path), nn.Linear | Conv1D)
