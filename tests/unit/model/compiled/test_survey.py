"""What a layer does is found by what it does: names may lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorry.model.base_loader import LoadedModel
from lorry.model.compiled.description import ModelDescription
from lorry.model.compiled.survey_model import describe
from lorry.model.compiled.witness import Unknown
from lorry.model.paths import first_pass
from support.described_families import COMPILED
from support.executor_driver import load_tiny
from support.families import HIDDEN

Load = Callable[[str], LoadedModel]


@pytest.fixture
def load(tiny_model: Callable[[str], Path]) -> Load:
    """A model of its own: the tests below change it."""
    return lambda family: load_tiny(tiny_model(family), quantization="int8")


def described(loaded: LoadedModel) -> ModelDescription:
    return describe(loaded, first_pass(loaded).shapes, loaded.max_model_len)


@pytest.mark.parametrize("family", COMPILED)
def test_every_family_is_described(family: str, load: Load) -> None:
    loaded = load(family)
    found = described(loaded)
    linears = {p for layer in found.layers for phase in layer.phases for p in phase}
    assert linears | {found.head} == {
        path
        for path, module in loaded.layout.modules.items()
        if module.kind in ("linear", "conv1d")
    }
    assert found.hidden == HIDDEN
    assert len(found.layers) == 2


SHAPES: dict[str, Callable[[ModelDescription], bool]] = {
    "phi3": lambda m: len(m.layers[0].qkv) == len(m.layers[0].inner) == 1 and m.gated,
    "gpt2": lambda m: m.positions is not None and m.positions[1] == 0 and not m.ropes,
    "opt": lambda m: m.positions is not None and m.positions[1] == 2 and m.activation == "relu",
    "gpt_neox": lambda m: m.layers[0].parallel and m.rotated == 4 and m.activation == "gelu",
    "gpt_neox_sequential": lambda m: not m.layers[0].parallel,
    "phi": lambda m: m.layers[0].parallel and m.layers[0].mlp_norm == m.layers[0].attention_norm,
    "gemma": lambda m: m.embedding_factors == (8.0, 1.0) and m.activation == "gelu_tanh",
    "gemma2": lambda m: (m.layers[0].softcap, m.logit_cap) == (5.0, 8.0),
    "gemma3": lambda m: [layer.rope for layer in m.layers] == [1, 0] and len(m.ropes) == 2,
    "granite": lambda m: (
        m.embedding_factors == (1.0, 2.0)
        and m.layers[0].residuals == (0.7, 0.7)
        and m.logit_factor == 1 / 1.5
    ),
    "smollm3": lambda m: [layer.rope for layer in m.layers] == [0, None],
    "olmo2": lambda m: (
        m.layers[0].attention_norm is None
        and m.layers[0].after_attention is not None
        and m.layers[0].q_norm is not None
        and m.layers[0].q_norm.whole
    ),
    "nemotron": lambda m: m.activation == "relu_squared" and not m.gated,
    "cohere": lambda m: (
        m.rotation == "pairs"
        and m.logit_factor == 0.5
        and m.layers[0].q_norm is not None
        and not m.layers[0].q_norm.whole
    ),
    "cohere2": lambda m: [layer.rope for layer in m.layers] == [0, None],
    "stablelm_parallel": lambda m: (
        m.layers[0].q_norm is not None and len(m.layers[0].q_norm.norm.modules) == 4
    ),
    "gpt_bigcode": lambda m: m.kv_heads == 1 and m.heads == 4,
    "granite_odd": lambda m: m.vocab % 16 == 3,
}


@pytest.mark.parametrize("family", SHAPES)
def test_what_a_family_is_known_for(family: str, load: Load) -> None:
    assert SHAPES[family](described(load(family)))


@pytest.mark.parametrize("family", COMPILED)
def test_norms_that_nobody_has_trained(family: str, load: Load) -> None:
    """Weights of one: a norm is a factor then, of each token."""
    loaded = load(family)
    before = described(loaded)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if weight.ndim == 1 or "norm" in name:
                weight.fill_(float(name.endswith("weight")))
    again = described(loaded)
    for one, other in zip(before.layers, again.layers, strict=True):
        assert (one.q_norm is None) == (other.q_norm is None)
        assert (one.rope, one.phases) == (other.rope, other.phases)


# ---- modules that do not do what they are called


def doing(module: nn.Module, forward: Callable[..., Any]) -> None:
    """`module` answers `forward(its own answer)` from now on."""
    own = module.forward

    def changed(_self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(own(*args, **kwargs))

    module.forward = MethodType(changed, module)  # type: ignore[method-assign]


def refused(loaded: LoadedModel) -> str:
    with pytest.raises(Unknown) as caught:
        described(loaded)
    return str(caught.value)


def test_a_norm_that_does_something_else(load: Load) -> None:
    loaded = load("llama")
    doing(loaded.model.model.layers[1].input_layernorm, lambda y: y + 0.01)
    assert refused(loaded) == "attention reads what no known norm makes"


def test_a_norm_whose_weight_counts_from_one(load: Load) -> None:
    loaded = load("llama")
    norm = loaded.model.model.layers[1].mlp_norm = loaded.model.model.layers[1].input_layernorm
    with torch.no_grad():
        norm.weight -= 1
    norm.forward = MethodType(
        lambda self, x: (
            (1 + self.weight)
            * x
            * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        ),
        norm,
    )
    found = described(loaded).layers[1].attention_norm
    assert found is not None and found.from_one


def test_an_epsilon_that_is_another(load: Load) -> None:
    loaded = load("llama")
    norm = loaded.model.model.norm
    norm.variance_epsilon = 1e-3
    found = described(loaded).norm
    assert found is not None and found.epsilon == 1e-3


def test_another_activation(load: Load) -> None:
    loaded = load("llama")
    for layer in loaded.model.model.layers:
        layer.mlp.act_fn = nn.GELU()
    assert described(loaded).activation == "gelu"
    loaded.model.model.layers[1].mlp.act_fn = nn.ReLU()
    assert refused(loaded) == "its layers differ in their activation"
    loaded.model.model.layers[1].mlp.act_fn = nn.Mish()
    assert refused(loaded) == "its MLP has an activation that is not known"


def test_a_gate_by_another_name(load: Load) -> None:
    loaded = load("llama")
    mlp = loaded.model.model.layers[0].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
    mlp.forward = MethodType(
        lambda self, x: self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x)), mlp
    )
    names = [path.rpartition(".")[2] for path in described(loaded).layers[0].inner]
    assert names == ["up_proj", "gate_proj"]


def test_queries_that_are_scaled(load: Load) -> None:
    loaded = load("llama")
    before = described(loaded)
    attention = loaded.model.model.layers[1].self_attn
    attention.scaling *= 3
    assert described(loaded).layers[1].attention_scale == 3 * before.layers[0].attention_scale


def test_a_layer_that_counts_half(load: Load) -> None:
    loaded = load("llama")
    doing(loaded.model.model.layers[1].mlp, lambda y: 0.5 * y)
    assert described(loaded).layers[1].residuals == (1.0, pytest.approx(0.5, rel=1e-5))


def test_something_between_two_layers(load: Load) -> None:
    loaded = load("llama")
    layer = loaded.model.model.layers[1]
    own = layer.forward
    layer.forward = MethodType(lambda _self, x, *a, **k: own(x, *a, **k), layer)
    described(loaded)
    # Before anybody sees what the layer is given.
    layer.register_forward_pre_hook(
        lambda _module, args, kwargs: ((args[0] * 2, *args[1:]), kwargs), with_kwargs=True
    )
    assert refused(loaded) == "something happens between its layers"


def test_clipped_values(load: Load) -> None:
    loaded = load("llama")
    attention = loaded.model.model.layers[1].self_attn
    attention.v_proj = Then(attention.v_proj, lambda y: y.clamp(-0.5, 0.5))
    assert refused(loaded) == "its values are not those of a projection"


def test_positions_that_count_otherwise_far_away(load: Load) -> None:
    loaded = load("llama")
    attention = loaded.model.model.layers[1].self_attn
    attention.q_proj = Then(
        attention.q_proj, lambda y: y * (1 + torch.arange(y.shape[1])[:, None] // 5)
    )
    assert refused(loaded).startswith("its queries are ")


def test_angles_that_depend_on_the_length(load: Load) -> None:
    loaded = load("llama")
    shapes = first_pass(loaded).shapes
    rotary = loaded.model.model.rotary_emb
    own = rotary.forward

    def stretched(_self: nn.Module, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        far = int(position_ids.max()) >= 100
        answer: tuple[Tensor, Tensor] = own(x, position_ids / 2 if far else position_ids)
        return answer

    rotary.forward = MethodType(stretched, rotary)
    # As long as it is served, they are what they are.
    assert describe(loaded, shapes, 100).longest == 100
    with pytest.raises(Unknown, match="its angles depend on the length of the sequence"):
        describe(loaded, shapes, 101)


def test_logits_that_are_warmer(load: Load) -> None:
    loaded = load("llama")
    doing(loaded.model, lambda output: scaled(output, lambda y: y * 0.25))
    assert described(loaded).logit_factor == pytest.approx(0.25, rel=1e-6)
    doing(loaded.model, lambda output: scaled(output, lambda y: y.square()))
    assert refused(loaded) == "something is done to its logits"


def scaled(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    output.logits = change(output.logits)
    return output


class Then(nn.Module):
    """A linear, and something that is done to its answer where nobody sees it."""

    def __init__(self, linear: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.change = linear, change

    @property
    def weight(self) -> Tensor:
        weight = self.linear.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.linear(x))
