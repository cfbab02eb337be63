"""What an adapter takes in memory after it was prepared for a slot, counted tensor by tensor.

Every kind of delta is found by what it holds: tensors in its fields, or in the cells of a
function. Tensors of the base, and those that were counted already, count nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from lorry.model.compiled.adapter import PackedAdapter
from lorry_adapters.lora.adapter_memory import AdapterBytes
from lorry_adapters.lora.layers import BoundAdapter
from lorry_adapters.lora.prompt import KeyValuePrefix, PromptEmbeddings, VirtualTokens
from lorry_adapters.lora.weights import AdapterWeights

Storages = set[int]
"""Addresses of memory that was counted."""

_HELD: Final = "_held"
"""The field with copies for the general path, made when that first applies the delta."""


@dataclass(frozen=True, slots=True)
class BaseMemory:
    """What belongs to the base, and to no adapter."""

    storages: frozenset[int]
    modules: frozenset[int]
    """By `id`."""


def memory_of_base(model: nn.Module) -> BaseMemory:
    storages = (
        part.untyped_storage().data_ptr()
        for tensor in (*model.parameters(), *model.buffers())
        for part in _strided(tensor)
    )
    return BaseMemory(frozenset(storages), frozenset(map(id, model.modules())))


def placed_bytes(
    bound: BoundAdapter,
    packed: PackedAdapter | None,
    base: BaseMemory,
    itemsize: int,
    *,
    ends: Sequence[str],
) -> tuple[AdapterBytes, AdapterBytes]:
    """What it takes on its way to a slot, and in the slot. `ends`: paths of the base's embeddings
    and its head; `itemsize`: of the device's numbers."""
    weights = bound.weights
    if packed is not None and bound.plain and weights.score is None:
        plain = AdapterBytes(weights.bytes, packed.memory.nbytes)
        return plain, plain
    seen = set(base.storages)
    count = partial(_bytes_in, base.modules)
    file = count(seen, *_of_file(weights))
    virtual = count(set(base.storages), weights.prompt)
    file -= virtual
    ending = [mine for path, mine in bound.deltas.items() if path in ends]
    heads = count(seen, *ending) + count(set(base.storages), weights.score)
    deltas = count(seen, *(m for path, m in bound.deltas.items() if path not in ends))
    if packed is None:
        pairs = sum(pair.a_RI.numel() + pair.b_OR.numel() for pair in weights.modules.values())
        pairs *= itemsize
        heads += _later(ending, itemsize)
        deltas += _later([m for p, m in bound.deltas.items() if p not in ends], itemsize)
    else:
        pairs = packed.memory.nbytes + sum(one.nbytes for one in packed.shared.values())
        pairs += sum(pair.nbytes for pair in {one.pair for one in packed.shared.values()})
        heads += packed.embedding_head.nbytes
        deltas += 0 if packed.vectors is None else packed.vectors.most_nbytes
    virtual += _copy_of(weights.prompt, itemsize)
    coming = AdapterBytes(file, pairs, deltas, heads, virtual)
    if packed is not None:
        return coming, coming
    # The slots of the general path are copies of the pairs. Deltas may hold tensors of the file.
    alone = count(set(base.storages), *bound.deltas.values())
    shared = alone - count({*base.storages, *_storages(weights)}, *bound.deltas.values())
    return coming, replace(coming, weights=0, deltas=deltas + shared)


def general_bytes(bound: BoundAdapter, itemsize: int) -> AdapterBytes:
    """What the slots of the general path take in addition, for an adapter of the compiled step."""
    pairs = sum(pair.a_RI.numel() + pair.b_OR.numel() for pair in bound.weights.modules.values())
    return AdapterBytes(
        pairs=pairs * itemsize, deltas=_later(list(bound.deltas.values()), itemsize)
    )


def _of_file(weights: AdapterWeights) -> tuple[object, ...]:
    return weights.modules, weights.effects, weights.prompt, weights.score


def _storages(weights: AdapterWeights) -> Storages:
    found: Storages = set()
    _bytes_in(frozenset(), found, *_of_file(weights))
    return found


def _copy_of(prompt: VirtualTokens | None, itemsize: int) -> int:
    match prompt:
        case PromptEmbeddings(rows):
            return 0 if rows.dtype.itemsize == itemsize else rows.numel() * itemsize
        case KeyValuePrefix(cells):
            return cells.numel() * itemsize
        case _:
            return 0


def _later(deltas: Iterable[Sequence[Any]], itemsize: int) -> int:
    """Of the copies that the general path makes later."""
    total = 0
    for one in (delta for mine in deltas for delta in mine):
        if hasattr(one, _HELD) and not getattr(one, _HELD):
            tensors = (getattr(one, field.name) for field in fields(one))
            total += sum(t.numel() * itemsize for t in tensors if isinstance(t, Tensor))
    return total


def _bytes_in(base: frozenset[int], seen: Storages, *roots: Any) -> int:
    """Bytes of all tensors that are reachable from `roots`, each storage once; adds to `seen`.
    `base`: modules that are not entered."""
    total, met, left = 0, set(base), list(roots)
    while left:
        one = left.pop()
        if one is None or isinstance(one, str | bytes | int | float | type) or id(one) in met:
            continue
        met.add(id(one))
        if isinstance(one, Tensor):
            for part in _strided(one):
                storage = part.untyped_storage()
                if storage.nbytes() and storage.data_ptr() not in seen:
                    seen.add(storage.data_ptr())
                    total += storage.nbytes()
        elif isinstance(one, np.ndarray):
            if one.ctypes.data not in seen:
                seen.add(one.ctypes.data)
                total += one.nbytes
        elif isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            left += one
        elif isinstance(one, partial):
            left += [one.func, *one.args, *one.keywords.values()]
        elif isinstance(one, MethodType):
            left.append(one.__self__)
        elif isinstance(one, FunctionType):
            left += [cell.cell_contents for cell in one.__closure__ or ()]
        elif is_dataclass(one):
            left += [getattr(one, field.name) for field in fields(one)]
        elif isinstance(one, nn.Module):
            # PEFT's layers keep some of their tensors in plain dictionaries.
            left += (part for part in vars(one).values() if isinstance(part, Mapping | Tensor))
        elif type(one).__module__.startswith("lorry"):
            left += getattr(one, "__dict__", {}).values()
    return total


def _strided(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.layout is torch.sparse_csr:
        return (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    # PEFT's layers around a linear without weights have tensors without memory.
    real = tensor.layout is torch.strided and tensor.device.type != "meta"
    return (tensor,) if real else ()
