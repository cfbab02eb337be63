"""The compiled step's mixture of experts against its formula, and against itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorry.model.compiled import library, structs
from lorry.model.compiled.pack import PackedLinear
from lorry.model.compiled.packer import Packer
from lorry.model.expert_stacks import PlainStack, quantized
from support.compiled import compiled, runnable

HIDDEN, INNER, EXPERTS, CHOSEN = 128, 64, 6, 3
MOST_TOKENS = 40
CLOSE = {"int8": 2e-3, "nf4": 3e-2}
"""Of the largest number: activations of 14 bits or 8, twice."""


@dataclass(frozen=True, slots=True)
class Weights:
    router_EH: Tensor
    gate_up: PlainStack
    down: PlainStack

    @classmethod
    def of(cls, kind: str) -> Weights:
        generator = torch.Generator().manual_seed(4)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

        stacks = (
            quantized(drawn(EXPERTS, *size), kind, double_quant=True)
            for size in ((2 * INNER, HIDDEN), (HIDDEN, INNER))
        )
        return cls(3 * drawn(EXPERTS, HIDDEN), *stacks)

    def answers(self, x_TH: Tensor, *, normed: bool, factor: float) -> Tensor:
        probability_TE = torch.softmax(x_TH @ self.router_EH.T, -1)
        part_TK, index_TK = probability_TE.topk(CHOSEN, -1)
        if normed:
            part_TK = part_TK / part_TK.sum(-1, keepdim=True)
        up_EOI, down_EOI = self.gate_up.dense_weight(), self.down.dense_weight()
        y_TH = torch.zeros_like(x_TH)
        for t, (index_K, part_K) in enumerate(zip(index_TK, part_TK, strict=True)):
            for expert, part in zip(index_K.tolist(), part_K, strict=True):
                gate_I, up_I = (x_TH[t] @ up_EOI[expert].T).chunk(2)
                y_TH[t] += factor * part * ((F.silu(gate_I) * up_I) @ down_EOI[expert].T)
        return y_TH


class CompiledMixture:
    """`close` it."""

    def __init__(
        self,
        built: ctypes.CDLL,
        weights: Weights,
        *,
        threads: int = 1,
        normed: bool = True,
        factor: float = 1.0,
    ) -> None:
        self._built, packer = built, Packer(built, 1)
        stacks = (weights.gate_up, weights.down)
        self._packed: list[PackedLinear] = [packer.tensors(s.base_tensors()) for s in stacks]
        packer.close()
        self._router = weights.router_EH.contiguous()
        self._layers = (structs.Layer * 1)()
        self._layers[0].mixture = structs.Mixture(
            router=self._router.data_ptr(),
            gate_up=self._packed[0].struct,
            down=self._packed[1].struct,
            factor=factor,
            experts=EXPERTS,
            chosen=CHOSEN,
            inner=INNER,
            normed=normed,
        )
        self._model = structs.Model(
            num_layers=1, hidden=HIDDEN, heads=1, kv_heads=1, head_size=16, inner=0, vocab=16,
            max_rank=8, gated=True, layers=self._layers,
        )  # fmt: skip
        self._engine = built.lorry_engine(
            ctypes.byref(self._model), MOST_TOKENS, MOST_TOKENS, 16, threads
        )
        assert self._engine

    def __call__(self, x_TH: Tensor) -> Tensor:
        x_TH, y_TH = x_TH.contiguous(), torch.full_like(x_TH, torch.nan)
        self._built.lorry_mixture(
            self._engine, ctypes.byref(self._layers[0].mixture), x_TH.data_ptr(),
            y_TH.data_ptr(), len(x_TH),
        )  # fmt: skip
        return y_TH

    def close(self) -> None:
        self._built.lorry_engine_free(self._engine)


@pytest.fixture
def make(built: ctypes.CDLL) -> Iterator[Callable[..., CompiledMixture]]:
    made: list[CompiledMixture] = []

    def mixture(weights: Weights, **more: object) -> CompiledMixture:
        made.append(CompiledMixture(built, weights, **more))  # type: ignore[arg-type]
        return made[-1]

    yield mixture
    for one in made:
        one.close()


def clear_rows(weights: Weights, tokens: int) -> Tensor:
    """Of which no rounding changes the choice."""
    generator, found = torch.Generator().manual_seed(6), []
    for _ in count():
        x_H = torch.randn(HIDDEN, generator=generator)
        scores = (weights.router_EH @ x_H).sort(descending=True).values
        if float(scores[CHOSEN - 1] - scores[CHOSEN]) > 0.02:
            found.append(x_H)
        if len(found) == tokens:
            break
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize(("normed", "factor"), [(True, 1.0), (False, 2.5)])
def test_the_chosen_experts_answer(
    normed: bool,
    factor: float,
    tokens: int,
    threads: int,
    kind: str,
    make: Callable[..., CompiledMixture],
) -> None:
    weights = Weights.of(kind)
    x_TH = clear_rows(weights, tokens)
    expected_TH = weights.answers(x_TH, normed=normed, factor=factor)
    found_TH = make(weights, threads=threads, normed=normed, factor=factor)(x_TH)
    assert float((found_TH - expected_TH).abs().max()) < CLOSE[kind] * float(
        expected_TH.abs().max()
    )


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_token_does_not_know_its_neighbours(
    kind: str, make: Callable[..., CompiledMixture]
) -> None:
    """Bit for bit, whoever chose the same experts, on any number of threads."""
    weights = Weights.of(kind)
    x_TH = torch.randn(MOST_TOKENS, HIDDEN, generator=torch.Generator().manual_seed(7))
    one, three = make(weights), make(weights, threads=3)
    together_TH = one(x_TH)
    assert torch.equal(torch.cat([one(row[None]) for row in x_TH]), together_TH)
    assert torch.equal(three(x_TH.flip(0)).flip(0), together_TH)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_every_instruction_set_has_the_same_bits(kind: str, tmp_path: Path) -> None:
    """The choice too: scores are added up in one order."""
    weights = Weights.of(kind)
    x_TH = torch.randn(MOST_TOKENS, HIDDEN, generator=torch.Generator().manual_seed(8))
    answers = []
    for instructions in runnable():
        mixture = CompiledMixture(compiled(instructions, tmp_path), weights, threads=2)
        answers.append(mixture(x_TH))
        mixture.close()
    if len(answers) < 2:
        pytest.skip(f"this processor has {library.instructions()} alone")
    assert all(torch.equal(answer, answers[0]) for answer in answers[1:])


def test_the_first_of_equals_is_chosen(make: Callable[..., CompiledMixture]) -> None:
    weights = Weights.of("int8")
    weights.router_EH.copy_(weights.router_EH[:1].expand(EXPERTS, -1).clone())
    x_TH = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(9))
    up_EOI, down_EOI = weights.gate_up.dense_weight(), weights.down.dense_weight()
    expected_TH = torch.zeros_like(x_TH)
    for expert in range(CHOSEN):
        gate_TI, up_TI = (x_TH @ up_EOI[expert].T).chunk(2, -1)
        expected_TH += (F.silu(gate_TI) * up_TI) @ down_EOI[expert].T / CHOSEN
    found_TH = make(weights)(x_TH)
    assert float((found_TH - expected_TH).abs().max()) < CLOSE["int8"] * float(
        expected_TH.abs().max()
    )


def test_what_is_no_number_stays_in_its_row(make: Callable[..., CompiledMixture]) -> None:
    weights = Weights.of("nf4")
    x_TH = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(10))
    mixture = make(weights)
    before_TH = mixture(x_TH)
    x_TH[1, 5] = torch.nan
    x_TH[2] = torch.inf
    after_TH = mixture(x_TH)
    assert torch.equal(after_TH[[0, 3]], before_TH[[0, 3]])
    assert not after_TH[1].isfinite().any()
