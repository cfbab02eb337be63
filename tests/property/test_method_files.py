"""Files of PEFT's methods with something wrong in them: refused in words, or served; never a crash.

What is let in must bind to the base as well: that happens when the first request comes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorry.model.layout import layout_of
from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.effects import EffectTarget
from lorry_adapters.lora.layers import plain_weight
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE, inspect, load
from support import tiny

ONE = {"target_modules": ["k_proj"], "task_type": "CAUSAL_LM"}
METHODS: dict[str, Callable[[], peft.PeftConfig]] = {
    "shira": lambda: peft.ShiraConfig(r=2, random_seed=1, **ONE),
    "supertuning": lambda: peft.SupertuningConfig(sparsity=0.9, r=3, **ONE),
    "beft": lambda: peft.BeftConfig(**ONE),
    "osf": lambda: peft.OSFConfig(effective_rank=20, **ONE),
    "psoft": lambda: peft.PsoftConfig(r=4, psoft_alpha=4, **ONE),
    "frod": lambda: peft.FrodConfig(progressbar=False, **ONE),
    "kasa": lambda: peft.LoraConfig(r=4, kasa_config=KasaConfig(), **ONE),
    "bdlora": lambda: peft.LoraConfig(
        r=4, use_bdlora=BdLoraConfig(target_modules_bd_a=["k_proj"], nblocks=2), **ONE
    ),
}
_shapes = st.lists(st.sampled_from([0, 1, 2, 4, 32, 64]), max_size=3)
_types = st.sampled_from(
    [torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.int8, torch.bool]
)
_values = st.sampled_from([None, 0, -1, 2, 3, 10**12, 1.5, -2.5, "x", [], {}, [1], {"a": 1}, True])


@cache
def base() -> torch.nn.Module:
    return tiny.build_model("llama")


@cache
def saved(method: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(base()), METHODS[method]())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / CONFIG_FILE).read_text())
        return config, load_file(Path(folder) / WEIGHTS_FILE)


def numbers(dtype: torch.dtype) -> st.SearchStrategy[Any]:
    """What a tensor of that type can hold: places in and out of a layer, where it holds places."""
    if dtype.is_floating_point:
        return st.floats(width=16)
    if dtype is torch.bool:
        return st.booleans()
    held = torch.iinfo(dtype)
    return st.sampled_from([n for n in (32, 64, -1, 1 << 30, 0) if held.min <= n <= held.max])


def change(data: st.DataObject, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    key = data.draw(st.sampled_from(sorted(tensors)))
    match data.draw(st.sampled_from(["number", "shape", "type", "gone", "twin", "field"])):
        case "shape":
            tensors[key] = torch.ones(data.draw(_shapes)).to(tensors[key].dtype)
        case "type":
            tensors[key] = tensors[key].to(data.draw(_types))
        case "gone":
            del tensors[key]
        case "number" if tensors[key].numel():
            flat = tensors[key].clone().flatten()
            at = data.draw(st.integers(0, flat.numel() - 1))
            flat[at] = data.draw(numbers(flat.dtype))
            tensors[key] = flat.view(tensors[key].shape)
        case "twin":
            tensors[key.removeprefix("base_model.model.")] = tensors[key].clone()
        case "field":
            config[data.draw(st.sampled_from(sorted(config)))] = data.draw(_values)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=100)
@given(data=st.data())
def test_refused_or_served(method: str, data: st.DataObject) -> None:
    config, tensors = (dict(one) for one in saved(method))
    for _ in range(data.draw(st.integers(1, 2))):
        change(data, config, tensors)
        if not tensors:
            break
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        save_file({key: one.clone() for key, one in tensors.items()}, folder / WEIGHTS_FILE)
        layout = layout_of(base(), "tiny")  # type: ignore[arg-type]
        try:
            inspect(folder, layout, 64)
        except InvalidAdapter as error:
            assert error.problems
            return
        weights = load(folder, "digest", layout)
    for path, effects in weights.effects.items():
        module = base().get_submodule(path)
        bare = EffectTarget(
            module, partial(plain_weight, module), torch.float32, torch.device("cpu")
        )
        y_MO = torch.zeros(2, layout.modules[path].out_features)
        for effect in effects:
            delta = effect.bind(bare)
            assert delta is not None
            x_MI = torch.zeros(2, layout.modules[path].in_features)
            assert delta(x_MI, y_MO, torch.ones(1, 1)).shape == y_MO.shape
