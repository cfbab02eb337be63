"""What the base takes, by part, a fingerprint of every byte of it, and nothing beside it."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorry.model.compiled.tensor_reader import fill
from lorry.model.expert_layouts import holds_experts
from lorry.model.expert_stacks import ExpertStack
from lorry.model.quantized_linear import QuantizedLinear

_LARGE = 1 << 20
"""Bytes. From here on it takes a third of the time to read the file than to copy what is mapped,
each small page of which is a fault."""

PARTS = ("quantized_linears", "linears", "experts", "embeddings", "output_head", "other")


def memory_by_part(model: PreTrainedModel) -> dict[str, int]:
    """Bytes of each of PARTS. A head tied to the embeddings counts there, and once."""
    head = model.get_output_embeddings()
    report = dict.fromkeys(PARTS, 0)
    seen: set[tuple[torch.device, int]] = set()
    for module in model.modules():
        part = _part(module, head)
        if isinstance(module, QuantizedLinear | ExpertStack):
            report[part] += module.nbytes
            continue
        for _, tensor in _tensors(module):
            storage = tensor.untyped_storage()
            key = (tensor.device, storage.data_ptr())
            if storage.nbytes() and key not in seen:
                seen.add(key)
                report[part] += storage.nbytes()
    return report


def digest_of_base(model: nn.Module) -> dict[str, str]:
    """sha256 of every parameter, buffer and quantization constant, by dotted name.

    Two calls give the same as long as no byte, dtype or shape of the base changed.
    """
    digests = {}
    for path, module in model.named_modules():
        for name, tensor in _tensors(module):
            digests[f"{path}.{name}" if path else name] = _digest(tensor)
    return digests


def let_go_of_files(model: nn.Module) -> None:
    """Copy what a quantized base on a CPU kept of its files as it was.

    One norm's weight that lies in a mapped file keeps all of the file mapped, and the
    unquantized weights in it count as the server's memory.
    """
    mapped = _mapped_files()
    for parameter in model.parameters():
        if parameter.device.type != "cpu" or not parameter.is_floating_point():
            continue
        at = parameter.data_ptr()
        if mapped is None:
            parameter.data = parameter.data.clone()
            continue
        for one in mapped:
            if one.first <= at < one.end:
                parameter.data = _copied(parameter.data, one)


def _copied(tensor: Tensor, mapped: _MappedFile) -> Tensor:
    if tensor.nbytes < _LARGE or not tensor.is_contiguous():
        return tensor.clone()
    copy = torch.empty_like(tensor)
    try:
        handle = os.open(mapped.path, os.O_RDONLY)
    except OSError:
        return tensor.clone()
    try:
        if os.fstat(handle).st_ino != mapped.inode:
            return tensor.clone()
        fill(handle, copy, mapped.offset + tensor.data_ptr() - mapped.first)
    except (OSError, ValueError):
        return tensor.clone()
    finally:
        os.close(handle)
    return copy


@dataclass(frozen=True, slots=True)
class _MappedFile:
    """Addresses of this process at which a file is mapped."""

    first: int
    end: int
    offset: int
    """In the file, of the first."""
    inode: int
    path: str


def _mapped_files() -> list[_MappedFile] | None:
    """None where the system does not tell. See proc_pid_maps(5) of Linux."""
    found = []
    try:
        for line in Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines():
            span, _, offset, _, inode, *path = line.split(maxsplit=5)
            if inode != "0":
                first, end = (int(part, 16) for part in span.split("-"))
                found.append(_MappedFile(first, end, int(offset, 16), int(inode), path[0]))
    except (OSError, ValueError, IndexError):
        return None
    return found


def give_back_freed() -> None:
    """What loading needed for a while goes back to the system; glibc would keep it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _part(module: nn.Module, head: nn.Module | None) -> str:
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if isinstance(module, ExpertStack) or holds_experts(module):
        return "experts"
    if module is head:
        return "output_head"
    if isinstance(module, Linear4bit | Linear8bitLt | QuantizedLinear):
        return "quantized_linears"
    if isinstance(module, nn.Linear | Conv1D):
        return "linears"
    return "other"


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own tensors, and those bitsandbytes keeps outside its parameters."""
    if isinstance(module, QuantizedLinear | ExpertStack):
        yield from module.base_tensors().items()
        return
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
    if isinstance(module, Linear4bit):
        state = module.weight.quant_state
        yield "weight.absmax", state.absmax
        yield "weight.code", state.code
        if state.nested:
            yield "weight.offset", state.offset
            yield "weight.nested_absmax", state.state2.absmax
            yield "weight.nested_code", state.state2.code
    if isinstance(module, Linear8bitLt):
        scales = module.state.SCB if module.state.SCB is not None else module.weight.SCB
        if scales is not None:
            yield "weight.scales", scales


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().contiguous().reshape(-1)
    data = flat.view(torch.uint8) if flat.numel() else flat
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(head + data.cpu().numpy().tobytes()).hexdigest()
