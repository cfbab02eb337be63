"""Pairs whose matrices several adapters share: VeRA's. y += b * (B (d * (A x))).

A and B are the same for all linears of an adapter, cut to their widths, and mostly for all
adapters of a rank, as a seed makes them. They are packed once, as any pair in 8 bits (`adapter`):
for each width of inputs, as a row of A is quantized by its largest. B is packed with the widest
outputs, and a linear reads the blocks of its own. So all rows of a step read the same few hundred
kilobytes, which stay in the caches, and of its own an adapter has two vectors for each linear.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorry.model.compiled.pack import BLOCK, padded
from lorry_adapters.lora.matrix_deltas import BoundShared

MAX_RANK = 256
"""PEFT's default."""


@dataclass(frozen=True, eq=False)
class SharedPair:
    """A and B for one width of inputs."""

    a: NDArray[np.uint8]
    b: NDArray[np.uint8]
    rank: int
    """The rank, padded."""

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class SharedPart:
    """Of one linear."""

    pair: SharedPair
    inner_R: Tensor
    outer_O: Tensor

    @property
    def nbytes(self) -> int:
        return self.inner_R.nbytes + self.outer_O.nbytes


class SharedPairs:
    """The shared pairs that adapters use now. Thread-safe."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._known: WeakValueDictionary[tuple[bytes, int], SharedPair] = WeakValueDictionary()

    def parts_of(
        self, deltas: Mapping[str, BoundShared], inputs: Mapping[str, int]
    ) -> dict[str, SharedPart]:
        """By linear. `inputs`: of each.

        Raises:
            MemoryError.
        """
        digests: dict[tuple[int, int], bytes] = {}
        found = {}
        for name, delta in deltas.items():
            a_RI, b_OR = delta.a_RI.float().contiguous(), delta.b_OR.float().contiguous()
            key = (delta.a_RI.data_ptr(), delta.b_OR.data_ptr())
            if key not in digests:
                digest = hashlib.sha256(repr((a_RI.shape, b_OR.shape)).encode())
                digest.update(a_RI.numpy().tobytes())
                digest.update(b_OR.numpy().tobytes())
                digests[key] = digest.digest()
            pair = self._pair(digests[key], a_RI, b_OR, inputs[name])
            inner_R = torch.zeros(pair.rank)
            inner_R[: len(delta.d_R)] = delta.d_R
            found[name] = SharedPart(pair, inner_R, delta.b_O.float().contiguous())
        return found

    def _pair(self, digest: bytes, a_RI: Tensor, b_OR: Tensor, inputs: int) -> SharedPair:
        with self._lock:
            known = self._known.get((digest, inputs))
            if known is None:
                known = self._known[(digest, inputs)] = self._packed(a_RI, b_OR, inputs)
            return known

    def _packed(self, a_RI: Tensor, b_OR: Tensor, inputs: int) -> SharedPair:
        cut_RI = a_RI[:, :inputs].contiguous()
        rank, outputs = len(cut_RI), -(-len(b_OR) // BLOCK) * BLOCK
        whole_OR = torch.zeros(outputs, rank)
        whole_OR[: len(b_OR)] = b_OR
        wide = padded(rank)
        a = np.zeros(wide * inputs + wide * np.dtype(np.int32).itemsize, dtype=np.uint8)
        b = np.zeros(outputs * (wide + np.dtype(np.uint16).itemsize), dtype=np.uint8)
        failed = self._library.lorry_pack(
            *(cut_RI.data_ptr(), whole_OR.data_ptr(), 1.0, rank, inputs, outputs),
            *(a.ctypes.data, b.ctypes.data),
        )
        if failed:
            raise MemoryError("no memory to pack an adapter")
        return SharedPair(a, b, wide)
