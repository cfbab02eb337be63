"""A model as the compiled step runs it: plain data, with modules by their paths.

    x += residual * after(attention(before(x)))
    x += residual * after(mlp(before(x)))

is a layer, and any of the norms may be missing; where it is `parallel`, the MLP reads the x that
attention reads. `lorry.model.compiled.survey` finds out what a model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class NormDescription:
    """y = weight * (x - m) / sqrt(mean((x - m)^2) + epsilon) + bias; m is 0 or the mean of x."""

    modules: tuple[str, ...]
    """One; or one for each head."""
    centred: bool
    """Whether m is the mean."""
    epsilon: float
    from_one: bool = False
    """The module's weight counts from one."""


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Of the queries, or of the keys."""

    norm: NormDescription
    whole: bool
    """Over all heads together, not over each."""
    last: bool = False
    """After they were rotated, not before."""


Rotation = Literal["halves", "pairs"]
"""Number i of a head turns with i + size / 2, or 2 i with 2 i + 1."""


@dataclass(frozen=True, slots=True)
class RopeDescription:
    """Where cosines and sines come from."""

    module: str
    """Empty: none, and `WrittenRope` makes them."""
    more: tuple[object, ...] = ()
    keywords: Mapping[str, object] = field(default_factory=dict)
    """What it is called with beside the positions."""
    angles: Rotation | None = None
    """How its rows have each angle twice; None: once."""


Scoring = Literal["softmax", "sigmoid", "sparse"]
"""What an expert's value is: softmax's or the sigmoid of its score. Sparse: the experts are chosen
one after the other, and each one's value is softmax's over those not chosen before whose score is
near its own (arXiv:2409.12136, SparseMixer-v2)."""


@dataclass(frozen=True, slots=True)
class RouterDescription:
    """score = weight . x + bias; the experts with the largest values + correction are chosen. Each
    counts its part: its value, or its share of the chosen ones' values."""

    module: str
    """It has the weight."""
    scoring: Scoring = "softmax"
    normed: bool = False
    """The parts of the chosen ones are 1 in all."""
    factor: float = 1.0
    """On the parts."""
    bias: str | None = None
    """A tensor of the model, one number for each expert."""
    correction: str | None = None
    """The same."""
    corrects_scores: bool = False
    """The largest scores + correction are chosen, not values + correction."""
    groups: tuple[int, int] | None = None
    """Of neighbouring experts, and how many groups are kept: those where the two largest of what is
    compared are most in all (arXiv:2412.19437, section 2.1.2). Others' experts are not chosen."""
    tolerance: float = 0.0
    """Sparse: scores are near a largest one that are less than this part of it away."""


@dataclass(frozen=True, slots=True)
class MixtureDescription:
    """Of a token, the chosen experts answer; each counts its part."""

    experts: str
    """The module with the stacks `gate_up_proj` and `down_proj`."""
    router: RouterDescription
    count: int
    chosen: int
    inner: int
    interleaved: bool = False
    """The outputs of an expert's gate lie between those of its other half, not before them."""
    clamp: tuple[float, float] | None = None
    """(alpha, limit) of (up + 1) * gate * sigmoid(alpha * gate), with gate <= limit and
    |up| <= limit (GPT-OSS); None: the model's activation(gate) * up."""
    shared_gate: str | None = None
    """A linear of one output: the layer's own MLP counts its sigmoid."""


@dataclass(frozen=True, slots=True)
class LayerDescription:
    attention: str | int
    """Its module, or the layer's number: whose cache it is."""
    qkv: tuple[str, ...]
    """Three linears, or one that is all of them."""
    heads_at: tuple[int, ...] | None
    """Where each head of queries, keys and values begins among all their outputs; None: in this
    order, without gaps."""
    o: str
    inner: tuple[str, ...]
    """Of the MLP: gate and up, both in one, or, where it has no gate, up. Beside a mixture that is
    an expert of all tokens; where there is none, no linear."""
    down: str | None
    inner_size: int
    """What `down` reads; 0: it has none."""
    attention_norm: NormDescription | None
    after_attention: NormDescription | None
    mlp_norm: NormDescription | None
    after_mlp: NormDescription | None
    q_norm: HeadNorm | None
    k_norm: HeadNorm | None
    rope: int | None
    """Which of the model's; None: heads are not rotated."""
    parallel: bool
    residuals: tuple[float, float]
    """What attention's answer counts, and the MLP's."""
    attention_scale: float
    softcap: float | None
    slopes: tuple[float, ...] | None
    """Of ALiBi, by head of the queries."""
    sinks: tuple[float, ...] | None = None
    """By head of the queries: the score of a token more, which has no value."""
    mixture: MixtureDescription | None = None

    @property
    def phases(self) -> tuple[tuple[str, ...], ...]:
        """The linears in the order in which they run; those of one phase read the same input."""
        mlp = () if self.down is None else (self.inner, (self.down,))
        return (self.qkv, (self.o,), *mlp)


@dataclass(frozen=True, slots=True)
class ModelDescription:
    layers: tuple[LayerDescription, ...]
    embedding: str
    embedding_factors: tuple[float, float]
    """On the table's rows within the embedding, and on its answers outside."""
    embedding_norm: NormDescription | None
    positions: tuple[str, int] | None
    """The table of learned positions, and the row of position 0."""
    norm: NormDescription | None
    head: str
    logit_factor: float
    logit_cap: float | None
    ropes: tuple[RopeDescription, ...]
    rotated: int
    """Numbers of a head, its first ones; 0: none."""
    rotation: Rotation
    activation: str
    gated: bool
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    """The largest `inner_size`."""
    vocab: int
    longest: int
    """Tokens of a sequence: so far angles were looked at."""
