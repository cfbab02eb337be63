"""What modules may compute, and whether a given one does: tried on numbers, whatever its name is.

Comparisons are of fp32 numbers that went through the same few operations, so they agree to a few
of their last digits or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorry.model.compiled.description import NormDescription, RopeDescription, Rotation

CLOSE = 2e-5
"""Of the largest number."""

EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12, float(torch.finfo(torch.float32).eps), 0.0)
"""Of norms whose own is written in their code."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
}
"""In the order of `step.h`."""


def clamped(gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
    """GPT-OSS's gate of an expert (`MixtureDescription.clamp`)."""
    gate = gate.clamp(max=limit)
    return (up.clamp(-limit, limit) + 1) * gate * torch.sigmoid(alpha * gate)


ROUNDING = 5e-7
"""Of a sum's largest number: what subtracting from it leaves too much or too little."""


def same(one: Tensor, other: Tensor, slack: float = 0.0) -> bool:
    if one.numel() != other.numel():
        return False
    one, other = one.reshape(other.shape), other
    largest = max(float(one.abs().max()), float(other.abs().max()))
    return float((one - other).abs().max()) <= CLOSE * largest + slack


def factor(y: Tensor, x: Tensor, known: Iterable[float] = (), slack: float = 0.0) -> float | None:
    """The number by which x was multiplied to give y; None where there is none. `known`: it is
    taken from these where one is as good."""
    if y.numel() != x.numel():
        return None
    x64, y64 = x.double().flatten(), y.double().flatten()
    square = float(x64 @ x64)
    if square == 0:
        return None
    found = float(y64 @ x64) / square
    for number in (1.0, *known):
        if math.isclose(found, number, rel_tol=1e-4) and same(y, x * number, slack):
            return number
    return found if same(y, x * found, slack) else None


def added(total: Tensor, before: Tensor, x: Tensor, known: Iterable[float] = ()) -> float | None:
    """The number by which x was multiplied before it was added to `before`, to give `total`."""
    if total.numel() != before.numel():
        return None
    slack = ROUNDING * float(before.abs().max())
    return factor(total.reshape(before.shape) - before, x, known, slack)


def norm_of(path: str, module: nn.Module, shape: Sequence[int]) -> NormDescription | None:
    """As which norm of rows of `shape` the module can be described; None: as none."""
    if any(True for _ in module.children()):
        return None
    weights = dict(module.named_parameters(recurse=False))
    if not weights.keys() <= {"weight", "bias"}:
        return None
    width = shape[-1]
    if any(weight.shape[-1] != width for weight in weights.values()):
        return None
    generator = torch.Generator().manual_seed(2)
    # Small ones show an epsilon, and an offset a mean.
    loud = torch.randn(3, *shape, generator=generator) + 0.5
    try:
        with torch.inference_mode():
            tried = [(x, module(x)) for x in (loud, 1e-3 * loud)]
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    if any(not isinstance(y, Tensor) or y.shape != x.shape for x, y in tried):
        return None
    for centred in (False, True):
        for epsilon in _epsilons(module):
            for from_one in (False, True):
                one = NormDescription((path,), centred, epsilon, from_one)
                weight, bias = weight_of(module, from_one, width), bias_of(module)
                if all(same(normed(x, one, weight, bias), y) for x, y in tried):
                    return one
    return None


def _epsilons(module: nn.Module) -> list[float]:
    own = [v for v in vars(module).values() if isinstance(v, float) and 0 < v < 0.1]
    return [*dict.fromkeys([*own, *EPSILONS])]


def weight_of(module: nn.Module, from_one: bool, width: int) -> Tensor:
    """What a norm multiplies by, fp32."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return torch.ones(width)
    return weight.detach().float() + 1.0 if from_one else weight.detach().float()


def bias_of(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return bias.detach().float() if isinstance(bias, Tensor) else None


def normed(x: Tensor, norm: NormDescription, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`NormDescription`'s formula."""
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
    y = weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.epsilon))
    return y if bias is None else y + bias


def rotated(x: Tensor, cos_TA: Tensor, sin_TA: Tensor, rotation: Rotation) -> Tensor:
    """`[.., T, D]`, whose first 2 A numbers turn (arXiv:2104.09864, section 3.4.2)."""
    size = 2 * cos_TA.shape[-1]
    turning, rest = x[..., :size], x[..., size:]
    if rotation == "halves":
        first, second = turning.chunk(2, -1)
    else:
        first, second = turning[..., ::2], turning[..., 1::2]
    pair = first * cos_TA - second * sin_TA, second * cos_TA + first * sin_TA
    if rotation == "halves":
        return torch.cat([*pair, rest], -1)
    return torch.cat([torch.stack(pair, -1).flatten(-2), rest], -1)


def angles_of(table_TR: Tensor, kind: Rotation | None) -> Tensor:
    """`[T, A]`, each angle once, of a table that has them as `kind` says."""
    match kind:
        case "halves":
            return table_TR[..., : table_TR.shape[-1] // 2]
        case "pairs":
            return table_TR[..., ::2]
        case _:
            return table_TR


def called(module: nn.Module, rope: RopeDescription, ids_1T: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions, `[1, T, R]` each, as the module has them."""
    cos_1TR, sin_1TR = module(torch.zeros(()), ids_1T, *rope.more, **rope.keywords)
    return cos_1TR, sin_1TR


def kind_of(table_TR: Tensor) -> Rotation | None:
    """How a table of cosines or sines has each angle twice; None: it has it once."""
    first, second = table_TR.tensor_split(2, -1)
    if first.shape == second.shape and torch.equal(first, second):
        return "halves"
    even, odd = table_TR[..., ::2], table_TR[..., 1::2]
    return "pairs" if even.shape == odd.shape and torch.equal(even, odd) else None


def starts_of(heads_XTD: Tensor, rows_TO: Tensor, *, turned: bool) -> list[int] | None:
    """Where each head begins in the rows that it was cut out of; None where one is not there.
    `turned`: its first token is at position 0, where turning is no more than a factor."""
    size = heads_XTD.shape[2]
    if rows_TO.shape[1] % size:
        return None
    parts_PTD = rows_TO.view(len(rows_TO), -1, size).transpose(0, 1)
    if turned:
        heads_XTD, parts_PTD = heads_XTD[:, :1], parts_PTD[:, :1]
    found = []
    for head_TD in heads_XTD:
        if turned:
            here = _turned_alike(head_TD[0], parts_PTD[:, 0])
        else:
            gap = (parts_PTD - head_TD).abs().amax((1, 2))
            here = (gap <= CLOSE * head_TD.abs().max()).nonzero().flatten().tolist()
        if not here:
            return None
        found.append(here[0] * size)
    return found


def _turned_alike(head_D: Tensor, parts_PD: Tensor) -> list[int]:
    """Which parts the head may come of: every number times what the first one or the last one
    is multiplied by."""
    numbers_PD = torch.where(parts_PD == 0, 1e-30, parts_PD)
    first_P1, last_P1 = (head_D[i] / numbers_PD[:, i, None] for i in (0, -1))
    gap_PD = torch.minimum(
        (head_D - parts_PD * first_P1).abs(), (head_D - parts_PD * last_P1).abs()
    )
    near_P = gap_PD.amax(-1) <= 10 * CLOSE * head_D.abs().max()
    return [int(place) for place in near_P.nonzero()]
