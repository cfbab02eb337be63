"""How each sample adapter is trained: its LoRA shape and its schedule.

The shapes differ on purpose (rank, targets, scaling, stored dtype), so that a batch over all
samples is also a show of what the server mixes. All are plain LoRA: no DoRA, no bias. `of_kind`
makes another kind of adapter from the same data.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


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
    kind: str = "lora"
    """One of KINDS."""
    data: str = ""
    """Whose examples it learns; its own where this is empty."""
    start: str = "Answer every request in just this way:"
    """Prompt tuning: the text whose embeddings the virtual tokens start as."""

    @property
    def examples(self) -> str:
        return self.data or self.name


_ALL = (
    Plan(
        name="pirate",
        rank=4,
        alpha=8,
        targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
        epochs=8,
        start="Answer every question as a pirate would, with arr, matey, ahoy and ye:",
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

KINDS = ("lora", "rslora", "dora", "ia3", "prompt")
"""rslora to prompt: what `--kind` makes of a plan, as NAME-KIND."""


def of_kind(plan: Plan, kind: str) -> Plan:
    """The plan with the same data, trained as another kind; its shape is the kind's own."""
    assert kind in KINDS
    if kind == "lora":
        return plan
    plan = replace(
        plan,
        name=f"{plan.name}-{kind}",
        data=plan.name,
        kind=kind,
        rslora=kind == "rslora",
        rank_pattern={},
        alpha_pattern={},
        layers=None,
    )
    match kind:
        case "rslora":
            return replace(plan, rank=4, alpha=4, targets=("q_proj", "v_proj", "down_proj"))
        case "dora":
            return replace(
                plan, rank=4, alpha=8, targets=("v_proj", "o_proj", "down_proj"), learning_rate=2e-3
            )
        case "ia3":
            # Keys, values and the MLP's inside, as in the paper.
            return replace(
                plan,
                rank=0,
                alpha=0,
                targets=("k_proj", "v_proj", "down_proj"),
                epochs=12,
                learning_rate=2e-2,
                dtype="float32",
            )
        case _:
            return replace(
                plan,
                rank=0,
                alpha=0,
                targets=(),
                epochs=8,
                learning_rate=2e-2,
                dtype="float32",
            )
