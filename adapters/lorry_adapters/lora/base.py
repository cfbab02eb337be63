"""The base model as adapters see it: the modules that can carry a delta, and their shapes.

Plain data, no torch: uploads are verified against it without touching the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class ModuleKind(StrEnum):
    LINEAR = "linear"
    """`torch.nn.Linear` or one of its quantized forms."""
    CONV1D = "conv1d"
    """GPT-2's transposed linear; the adapter's own shapes are those of a linear."""
    EMBEDDING = "embedding"
    """in_features is the vocabulary, out_features the width."""
    EXPERTS = "experts"
    """Of a parameter: one projection of all experts, a matrix for each, in one tensor."""
    ROUTER = "router"
    """Of a parameter: the weight of what chooses a token's experts."""
    OTHER = "other"
    """Has weights, cannot carry a pair of matrices (norms)."""


@dataclass(frozen=True, slots=True)
class BaseModule:
    name: str
    """Dotted path in the base model, e.g. `model.layers.0.self_attn.q_proj`."""
    kind: ModuleKind
    in_features: int
    out_features: int
    bias: bool = False
    experts: int = 1
    """Matrices of this shape that lie one on the other."""


@dataclass(frozen=True, slots=True)
class BaseParameter:
    """A parameter of a module that is no linear, which a LoRA can name by itself
    (`target_parameters`)."""

    owner: str
    """Path of the module."""
    shape: BaseModule
    """Named by the parameter's own path, e.g. `model.layers.0.mlp.experts.down_proj`; of the
    kind OTHER where it cannot carry a pair of matrices."""
    transposed: bool = False
    """The base stores a matrix as `[in, out]`."""
    formerly: tuple[str, ...] = ()
    """Before transformers 5 it was linears of these paths, side by side in its outputs, `{}`
    being the expert's number: `model.layers.0.block_sparse_moe.experts.{}.w2`."""


@dataclass(frozen=True, slots=True)
class AliasPart:
    """Some of a foreign module's outputs, and the base's module that computes them."""

    module: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class BaseLayout:
    """Every module of the resident base that an adapter could name."""

    name: str
    """What the base is called in the API and in an adapter's `base_model`."""
    architecture: str
    """The model class, e.g. `LlamaForCausalLM`."""
    num_layers: int
    output_embedding: str | None
    """Path of the output head; PEFT's `all-linear` leaves it out."""
    modules: Mapping[str, BaseModule]
    input_embedding: str | None = None
    tied: bool = False
    """The two embeddings are one table."""
    caps_logits: bool = False
    """What the head answers goes through a function with a bound before it is a logit."""
    exact: bool = True
    """The weights are those of the model's files; a quantized base's are near them."""
    kv_heads: int = 0
    """Heads of keys and values in every layer; 0 where the layers differ."""
    head_size: int = 0
    text: str = ""
    """Path of the text model, where the base has other parts beside it (vision, audio): those
    are loaded, and no text reaches them."""
    body: str = ""
    """Path of the model below the head: what an adapter for its hidden states calls its root."""
    parameters: Mapping[str, BaseParameter] = field(default_factory=dict)
    """Of experts and routers, by path; those of one module in the order it has them in."""
    apart: frozenset[str] = frozenset()
    """Linears that are handed other tokens than a step's: no adapter can change them."""
    called: Mapping[str, str] = field(default_factory=dict)
    """What the keys of an adapter call some of `modules`: PEFT nests wrappers."""
    aliases: Mapping[str, tuple[AliasPart, ...]] = field(default_factory=dict)
    """Paths that adapters know and this model has not: of each, who computes its outputs now,
    in their order."""
