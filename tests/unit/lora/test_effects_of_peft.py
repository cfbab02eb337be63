"""Settings of PEFT's methods beyond those of the matrix: one linear, and its delta."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn

from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.effects import EffectTarget
from lorry_adapters.lora.layers import plain_weight
from lorry_adapters.lora.spectral import Basis, InBasis
from lorry_adapters.lora.weights import inspect, load

PSOFT: dict[str, dict[str, object]] = {
    "full": {},
    "both halves": {"ab_svd_init": "pissa_init"},
    "by directions": {"psoft_svd": "lowrank", "random_seed": 4},
    "by directions, both halves": {"psoft_svd": "lowrank", "ab_svd_init": "pissa_init"},
    "series": {"use_cayley_neumann": True},
    "short series": {"use_cayley_neumann": True, "num_cayley_neumann_terms": 3},
    "shorter series": {"use_cayley_neumann": True, "num_cayley_neumann_terms": 2},
    "long series, cut": {
        "use_cayley_neumann": True,
        "num_cayley_neumann_terms": 7,
        "cayley_neumann_eps": 0.2,
    },
    "not orthogonal": {"psoft_orth": False},
    "no vectors": {"psoft_mag_a": False, "psoft_mag_b": False},
    "another alpha": {"psoft_alpha": 11},
}


class Model(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin(x)
        return out


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)], ids=["wide", "tall"])
@pytest.mark.parametrize("setting", PSOFT)
def test_psoft(setting: str, shape: tuple[int, int], tmp_path: Path) -> None:
    fields = {"r": 5, "psoft_alpha": 5, **PSOFT[setting]}
    agree(peft.PsoftConfig(target_modules=["lin"], **fields), shape, tmp_path)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)], ids=["wide", "tall"])
@pytest.mark.parametrize("rank", [2, 15], ids=["most of it", "one of them"])
def test_osf(rank: int, shape: tuple[int, int], tmp_path: Path) -> None:
    """Kept as a whole weight, and as two of low rank."""
    agree(peft.OSFConfig(target_modules=["lin"], effective_rank=rank), shape, tmp_path)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)], ids=["wide", "tall"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_frod(rate: float, shape: tuple[int, int], tmp_path: Path) -> None:
    config = peft.FrodConfig(target_modules=["lin"], sparse_rate=rate, progressbar=False)
    agree(config, shape, tmp_path)


def test_a_basis_that_is_none_binds_as_in_peft() -> None:
    """A stranger's file may hold any numbers: no answer is not an answer."""
    base = Model(4, 3)
    bare = EffectTarget(
        base.lin, partial(plain_weight, base.lin), torch.float32, torch.device("cpu")
    )
    places = torch.zeros(0, dtype=torch.int32)
    basis = Basis(torch.zeros(4, 4), places, places)
    delta = InBasis(basis, torch.ones(4), torch.zeros(0)).bind(bare)
    x_MI = torch.randn(2, 4)
    found_MO = delta(x_MI, torch.zeros(2, 3), torch.ones(1, 1))
    assert torch.allclose(found_MO, -x_MI @ base.lin.weight.detach().T, atol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"r": 3}, {"r": 3, "lora_alpha": 1.5}], ids=str)
def test_supertuning(fields: dict[str, object], tmp_path: Path) -> None:
    config = peft.SupertuningConfig(target_modules=["lin"], sparsity=0.9, **fields)
    agree(config, (24, 16), tmp_path)


def agree(config: PeftConfig, shape: tuple[int, int], folder: Path) -> None:
    torch.manual_seed(0)
    base = Model(*shape)
    model = get_peft_model(copy.deepcopy(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.3
    model.eval().save_pretrained(folder)
    module = BaseModule("lin", ModuleKind.LINEAR, *shape, bias=True)
    layout = BaseLayout("tiny", "Model", 1, None, {"lin": module})
    inspect(folder, layout, 64)
    weights = load(folder, "d", layout)
    bare = EffectTarget(
        base.lin, partial(plain_weight, base.lin), torch.float32, torch.device("cpu")
    )
    x_MI = torch.randn(6, shape[0])
    with torch.no_grad():
        y_MO = base(x_MI)
        delta_MO = torch.zeros_like(y_MO)
        for effect in weights.effects["lin"]:
            delta = effect.bind(bare)
            assert delta is not None
            delta_MO = delta_MO + delta(x_MI, y_MO, torch.ones(1, 1))
        for pair in weights.modules.values():
            delta_MO = delta_MO + pair.scaling * x_MI @ pair.a_RI.T @ pair.b_OR.T
        expected_MO = model(x_MI) - y_MO
    assert expected_MO.abs().max() > 0.05
    assert torch.allclose(delta_MO, expected_MO, atol=2e-5)
