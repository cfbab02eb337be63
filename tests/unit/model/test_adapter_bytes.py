"""What an adapter takes, counted by what its deltas hold, against the tensors that came to be."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorry.adapter_needs import AdapterNeeds
from lorry.model.adapter_bytes import memory_of_base, placed_bytes
from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.layers import LoraModel
from lorry_adapters.lora.weights import load, size_of
from support import peft_made
from support.executor_driver import load_tiny
from support.kind import Kind
from support.lora_kinds import LORAS
from support.method_kinds import METHODS
from support.tiny import family

KINDS = [one for one in (*LORAS, *METHODS) if one.fits(family("llama")) and not one.converted]


def _storages() -> dict[int, int]:
    gc.collect()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [one for one in gc.get_objects() if isinstance(one, Tensor)]
    for one in tensors:
        parts = [one]
        if one.layout is torch.sparse_csr:
            parts = [one.crow_indices(), one.col_indices(), one.values()]
        for part in parts:
            if part.layout is torch.strided and part.device.type == "cpu":
                found[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_tensor_of_every_kind_is_counted_once(
    kind: Kind, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_model("llama")
    base = peft_made.load_base(folder)
    made = peft_made.make(kind, "llama", base, tmp_path / "adapter").folder
    del base
    loaded = load_tiny(folder)
    lora = LoraModel(
        loaded.model,
        loaded.layout,
        num_slots=2,
        max_rank=64,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    before = _storages()
    try:
        weights = load(made, "digest", loaded.layout)
    except InvalidAdapter as error:
        assert "not served" in error.message
        return
    bound = lora.prepare(weights)
    after = _storages()
    taken = sum(size for address, size in after.items() if address not in before)
    ends = [loaded.layout.input_embedding or "", loaded.layout.output_embedding or ""]
    # Without what is copied later, where numbers take no bytes.
    size, placed = placed_bytes(bound, None, memory_of_base(lora.model), 0, ends=ends)
    assert size.total == pytest.approx(taken, rel=0.01, abs=300)
    assert placed.total <= size.total
    needs = AdapterNeeds(packed=False)
    facts = size_of(made, loaded.layout)
    assert needs.least(facts) <= size.total * 1.01 + 300
