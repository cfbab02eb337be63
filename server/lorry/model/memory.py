"""What the base takes, by part, a fingerprint of every byte of it, and nothing beside it."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorry.model.expert_layouts import holds_experts
from lorry.model.expert_stacks import ExpertStack
from lorry.model.quantized_linear import QuantizedLinear

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
        if mapped is None or any(first <= at < end for first, end in mapped):
            parameter.data = parameter.data.clone()


def _mapped_files() -> list[tuple[int, int]] | None:
    """The addresses at which files are mapped into this process; None where the system does not
    tell. See proc_pid_maps(5) of Linux."""
    found = []
    try:
        for line in Path("/proc/self/maps").read_text("utf-8", "replace").splitlines():
            span, _, _, _, inode, *_ = line.split()
            if inode != "0":
                first, end = (int(part, 16) for part in span.split("-"))
                found.append((first, end))
    except (OSError, ValueError):
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
