"""The order of a layer's norms and sums: what goes into attention and the MLP, and what becomes of
their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lorry.model.compiled.description import NormDescription
from lorry.model.compiled.formulas import added, norm_of, same
from lorry.model.compiled.witness import LayerRun, ModuleCall, Unknown, flat


@dataclass(frozen=True, slots=True)
class Branches:
    attention_norm: NormDescription | None
    after_attention: NormDescription | None
    mlp_norm: NormDescription | None
    after_mlp: NormDescription | None
    parallel: bool
    residuals: tuple[float, float]


class _Norms:
    """Of whole rows, in one layer."""

    def __init__(self, calls: Sequence[ModuleCall], width: int) -> None:
        self._width = width
        self._calls = [
            call
            for call in calls
            if not call.is_linear
            and call.x.shape == call.y.shape
            and call.y.shape[-1] == width
            and not isinstance(call.module, nn.Identity | nn.Dropout)
            and not any(True for _ in call.module.children())
        ]

    def between(self, x: Tensor, y: Tensor) -> NormDescription | None:
        """The norm that makes y of x."""
        for call in self._calls:
            if same(call.x, x) and same(call.y, y):
                found = norm_of(call.path, call.module, (self._width,))
                if found is not None:
                    return found
        return None

    def of(self, x: Tensor) -> list[tuple[NormDescription, Tensor]]:
        """Norms of x, and what they make of it."""
        found = []
        for call in self._calls:
            norm = norm_of(call.path, call.module, (self._width,)) if same(call.x, x) else None
            if norm is not None:
                found.append((norm, flat(call.y)))
        return found

    def reading(self) -> list[tuple[Tensor, Tensor]]:
        return [(flat(call.x), flat(call.y)) for call in self._calls]


Answers = list[tuple[NormDescription | None, Tensor]]
"""What may be added: an answer as it is, or what a norm makes of it."""


def survey_branches(
    run: LayerRun,
    qkv: ModuleCall,
    o: ModuleCall,
    mlp_TH: Tensor,
    answer_TH: Tensor,
    numbers: Sequence[float],
) -> Branches:
    """`qkv` and `o`: linears at the beginning and the end of attention; `mlp_TH`: what the MLP
    reads, and `answer_TH`: what it answers.

    Raises:
        Unknown: nothing that is known explains the layer's answer.
    """
    assert run.x_TH is not None and run.y_TH is not None
    x_TH, y_TH, read_TH = run.x_TH, run.y_TH, flat(qkv.x)
    if {x_TH.shape[1], flat(o.y).shape[1], answer_TH.shape[1]} != {y_TH.shape[1]}:
        raise Unknown("its layers change the width of what goes through them")
    norms = _Norms(run.calls, x_TH.shape[1])
    attention_norm = None if same(read_TH, x_TH) else norms.between(x_TH, read_TH)
    if attention_norm is None and not same(read_TH, x_TH):
        raise Unknown("attention reads what no known norm makes")
    attention: Answers = [*norms.of(flat(o.y)), (None, flat(o.y))]
    answers: Answers = [*norms.of(answer_TH), (None, answer_TH)]
    for after_attention, a_TH in attention:
        for after_mlp, m_TH in answers:
            # One after the other: the MLP, or its norm, reads the sum.
            for middle_TH in (mlp_TH, *(x for x, y in norms.reading() if same(y, mlp_TH))):
                first = added(middle_TH, x_TH, a_TH, numbers)
                second = added(y_TH, middle_TH, m_TH, numbers)
                if first is None or second is None:
                    continue
                mlp_norm = norms.between(middle_TH, mlp_TH)
                if mlp_norm is not None or same(middle_TH, mlp_TH):
                    return Branches(
                        attention_norm, after_attention, mlp_norm, after_mlp, False,
                        (first, second),
                    )  # fmt: skip
            mlp_norm = norms.between(x_TH, mlp_TH)
            both = added(y_TH, x_TH, a_TH + m_TH, numbers)
            if both is not None and (mlp_norm is not None or same(x_TH, mlp_TH)):
                return Branches(
                    attention_norm, after_attention, mlp_norm, after_mlp, True, (both, both)
                )
    raise Unknown("its norms and residuals are in an unknown order")
