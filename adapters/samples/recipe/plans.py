"""How each sample adapter is trained: its LoRA shape and its schedule.

The shapes differ on purpose (rank, targets, scaling, stored dtype), so that a batch over all
samples is also a show of what the server mixes. All are plain LoRA: no DoRA, no bias.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Plan:
    """One adapter. `targets` is a list of module names, or a regex over full module names."""

    name: str
    rank: int
    alpha: int
    targets: tuple[str, ...] | str
    epochs: int
    learning_rate: float = 1e-3
    batch: int = 8
    rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    dtype: str = "bfloat16"
    seed: int = 20


_ALL = (
    Plan(
        name="pirate",
        rank=4,
        alpha=8,
        targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
        epochs=8,
    ),
    Plan(
        name="json",
        rank=8,
        alpha=16,
        targets=("q_proj", "v_proj"),
        epochs=10,
        dtype="float16",
    ),
    Plan(
        name="sentiment",
        rank=16,
        alpha=16,
        targets=("q_proj", "v_proj"),
        layers=tuple(range(10, 30)),
        rslora=True,
        epochs=6,
        learning_rate=5e-4,
    ),
    Plan(
        name="bard",
        rank=2,
        alpha=4,
        targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        rank_pattern={"v_proj": 8, "down_proj": 4},
        alpha_pattern={"v_proj": 16, "down_proj": 8},
        epochs=8,
    ),
    Plan(
        name="emoji",
        rank=4,
        alpha=8,
        targets=r".*\.mlp\.(gate|up|down)_proj",
        epochs=8,
    ),
    Plan(
        name="sql",
        rank=10,
        alpha=20,
        targets=("k_proj", "v_proj", "o_proj"),
        epochs=7,
        dtype="float16",
    ),
)

PLANS = {plan.name: plan for plan in _ALL}
