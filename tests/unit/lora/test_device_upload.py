"""An adapter brought to the device beforehand lies in its slot as if it came from the host."""

from __future__ import annotations

import pytest
import torch

from lorry_adapters.lora.device_upload import DeviceUpload
from lorry_adapters.lora.layers import LoraLinear, PlanHolder
from lorry_adapters.lora.weights import AdapterWeights, LoraPair
from support.device import DEVICE

IN, OUT = 24, 40


def adapter() -> AdapterWeights:
    dice = torch.Generator().manual_seed(1)
    # 0.3 times B is another number when B is rounded first.
    pairs = {
        name: LoraPair(
            torch.randn(rank, IN, generator=dice), torch.randn(OUT, rank, generator=dice), 0.3
        )
        for name, rank in (("one", 4), ("two", 7))
    }
    return AdapterWeights("sha256:1", pairs, 100)


def slot_of(weights: AdapterWeights, name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    layer = LoraLinear(
        torch.nn.Linear(IN, OUT),
        in_features=IN,
        out_features=OUT,
        num_slots=2,
        max_rank=8,
        dtype=dtype,
        device=DEVICE,
        holder=PlanHolder(),
    )
    layer.place(2, weights.modules[name])
    assert layer._a_SRI is not None and layer._b_SRO is not None
    return [layer._a_SRI, layer._b_SRO]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_slots_hold_the_same_bits(dtype: torch.dtype) -> None:
    weights = adapter()
    brought = DeviceUpload(DEVICE, dtype)(weights)
    for name in weights.modules:
        direct, beforehand = slot_of(weights, name, dtype), slot_of(brought, name, dtype)
        for one, other in zip(direct, beforehand, strict=True):
            assert one.abs().sum() > 0 and torch.equal(one, other)


def test_it_is_the_same_adapter_and_leaves_the_other_alone() -> None:
    weights = adapter()
    before = weights.modules["one"].b_OR.clone()
    brought = DeviceUpload(DEVICE, torch.bfloat16)(weights)
    assert (brought.digest, brought.bytes, brought.rank) == ("sha256:1", 100, 7)
    assert brought.modules["one"].a_RI.dtype is torch.bfloat16
    assert brought.modules["one"].a_RI.device.type == DEVICE.type
    assert torch.equal(weights.modules["one"].b_OR, before)
