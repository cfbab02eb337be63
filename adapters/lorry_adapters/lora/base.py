"""The base model for adapters: the modules that can carry a delta, and their shapes.

Plain data, no torch: uploads are verified against it without the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class ModuleKind(StrEnum):
    LINEAR = "linear"
    """`torch.nn.Linear` or one of its quantized forms."""
    CONV1D = "conv1d"
    """GPT-2's transposed linear; an adapter's own shapes are those of a linear."""
    EMBEDDING = "embedding"
    """in_features is the vocabulary, out_features the width."""
    EXPERTS = "experts"
    """A parameter: one projection of all experts, a matrix for each, in one tensor."""
    ROUTER = "router"
    """A parameter: the weight that chooses a token's experts."""
    OTHER = "other"
    """It has weights, but cannot carry a pair of matrices (norms)."""


@dataclass(frozen=True, slots=True)
class BaseModule:
    name: str
    """Dotted path in the base model, e.g. `model.layers.0.self_attn.q_proj`."""
    kind: ModuleKind
    in_features: int
    out_features: int
    bias: bool = False
    experts: int = 1
    """Number of stacked matrices of this shape."""


@dataclass(frozen=True, slots=True)
class BaseParameter:
    """A parameter of a module that is not a linear. A LoRA can name it by itself
    (`target_parameters`)."""

    owner: str
    """Path of the module."""
    shape: BaseModule
    """Named by the parameter's own path, e.g. `model.layers.0.mlp.experts.down_proj`. Its kind is
    OTHER if it cannot carry a pair of matrices."""
    transposed: bool = False
    """The base stores a matrix as `[in, out]`."""
    formerly: tuple[str, ...] = ()
    """Paths of its linears before transformers 5, whose outputs were side by side; `{}` is the
    expert's number: `model.layers.0.block_sparse_moe.experts.{}.w2`."""


@dataclass(frozen=True, slots=True)
class AliasPart:
    """Some outputs of a foreign module, and the base's module that computes them."""

    module: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class BaseLayout:
    """Every module of the base that an adapter could name."""

    name: str
    """The base's name in the API and in an adapter's `base_model`."""
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
    """The head's output goes through a bounded function before it becomes logits."""
    exact: bool = True
    """The weights are those of the model's files; a quantized base's are approximations."""
    kv_heads: int = 0
    """Heads of keys and values in every layer; 0 if the layers differ."""
    head_size: int = 0
    text: str = ""
    """Path of the text model if the base has other parts (vision, audio). Those are loaded, but no
    text reaches them."""
    body: str = ""
    """Path of the model below the head: the root for adapters for its hidden states."""
    parameters: Mapping[str, BaseParameter] = field(default_factory=dict)
    """Parameters of experts and routers, by path; those of one module are in its order."""
    apart: frozenset[str] = frozenset()
    """Linears that receive other tokens than a step's: no adapter can change them."""
    called: Mapping[str, str] = field(default_factory=dict)
    """Names of some of `modules` in an adapter's keys: PEFT nests wrappers."""
    aliases: Mapping[str, tuple[AliasPart, ...]] = field(default_factory=dict)
    """Paths that adapters know and this model does not have, each with the modules that compute its
    outputs now, in order."""

    def weights(self) -> int:
        """Return the number of the base's weights, as they were before any quantization."""
        owners = {one.owner for one in self.parameters.values()}
        count = sum(_weights_of(one.shape) for one in self.parameters.values())
        for path, module in self.modules.items():
            if path not in owners and not (self.tied and path == self.output_embedding):
                count += _weights_of(module)
        return count


def _weights_of(module: BaseModule) -> int:
    inputs = 1 if module.kind is ModuleKind.OTHER else module.in_features
    return module.experts * module.out_features * inputs + module.bias * module.out_features
