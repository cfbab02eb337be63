"""The compiled step's mixture of experts against its formula, and against itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorry.model.chunks import FAR_4_BITS, FAR_8_BITS, rounded
from lorry.model.compiled import library, structs
from lorry.model.compiled.description import RouterDescription
from lorry.model.compiled.formulas import clamped
from lorry.model.compiled.model_structs import SCORINGS
from lorry.model.compiled.pack import PackedLinear
from lorry.model.compiled.packer import Packer
from lorry.model.compiled.survey_router import chosen
from lorry.model.expert_stacks import PlainStack, quantized
from support.compiled import compiled, runnable

HIDDEN, INNER, EXPERTS, CHOSEN = 128, 64, 6, 3
MOST_TOKENS = 40
CLOSE = 2e-3
"""Of the largest number. Activations are rounded in the formula, too; a last digit can flip a code
of what is inside."""

FAR = {"int8": FAR_8_BITS, "nf4": FAR_4_BITS}

PLAIN = RouterDescription("", normed=True)
"""Its vectors are `Weights.vectors`'."""

BIASED = replace(PLAIN, bias="small")
CORRECTED = replace(PLAIN, correction="small", normed=False, factor=2.5)
SIGMOID = replace(PLAIN, scoring="sigmoid", normed=False)
GROUPED = replace(PLAIN, scoring="sigmoid", correction="small", groups=(3, 2), factor=2.5)
RAW = replace(PLAIN, scoring="sigmoid", correction="large", corrects_scores=True)
SPARSE = RouterDescription("", scoring="sparse", tolerance=0.4)


@dataclass(frozen=True, slots=True)
class Kind:
    """Of experts."""

    interleaved: bool = False
    clamp: tuple[float, float] | None = None
    biased: bool = False


USUAL = Kind()
GPT_OSS = Kind(True, (1.7, 0.5), True)


@dataclass(frozen=True, slots=True)
class Weights:
    kind: str
    router_EH: Tensor
    gate_up: PlainStack
    down: PlainStack
    vectors: Mapping[str, Tensor]
    up_bias_EO: Tensor
    down_bias_EH: Tensor

    @classmethod
    def of(cls, kind: str) -> Weights:
        generator = torch.Generator().manual_seed(4)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

        stacks = (
            quantized(drawn(EXPERTS, *size), kind, double_quant=True)
            for size in ((2 * INNER, HIDDEN), (HIDDEN, INNER))
        )
        return cls(
            kind,
            3 * drawn(EXPERTS, HIDDEN),
            *stacks,
            vectors={"small": drawn(EXPERTS), "large": 2 * drawn(EXPERTS)},
            up_bias_EO=drawn(EXPERTS, 2 * INNER),
            down_bias_EH=drawn(EXPERTS, HIDDEN),
        )

    def answers(self, x_TH: Tensor, router: RouterDescription, kind: Kind = USUAL) -> Tensor:
        index_TK, part_TK = chosen(router, x_TH @ self.router_EH.T, self.vectors, CHOSEN)
        if router.normed:
            part_TK = part_TK / part_TK.sum(-1, keepdim=True)
        y_ETH = torch.stack([self.expert(expert, x_TH, kind) for expert in range(EXPERTS)])
        y_TH = torch.zeros_like(x_TH)
        for t, (index_K, part_K) in enumerate(zip(index_TK, part_TK, strict=True)):
            for expert, part in zip(index_K.tolist(), part_K, strict=True):
                y_TH[t] += router.factor * part * y_ETH[expert, t]
        return y_TH

    def expert(self, expert: int, x_TH: Tensor, kind: Kind = USUAL) -> Tensor:
        """What one of them answers."""
        far = FAR[self.kind]
        up_OI, down_HI = (s.dense_weight()[expert] for s in (self.gate_up, self.down))
        both_TO = rounded(x_TH, far) @ up_OI.T + kind.biased * self.up_bias_EO[expert]
        gate_TI, up_TI = (
            both_TO.unflatten(-1, (-1, 2)).unbind(-1) if kind.interleaved else both_TO.chunk(2, -1)
        )
        inside_TI = clamped(gate_TI, up_TI, *kind.clamp) if kind.clamp else F.silu(gate_TI) * up_TI
        return rounded(inside_TI, far) @ down_HI.T + kind.biased * self.down_bias_EH[expert]


class CompiledMixture:
    """`close` it."""

    def __init__(
        self,
        built: ctypes.CDLL,
        weights: Weights,
        *,
        threads: int = 1,
        router: RouterDescription = PLAIN,
        kind: Kind = USUAL,
    ) -> None:
        self._built, packer = built, Packer(built, 1)
        self._weights = weights
        stacks = (weights.gate_up, weights.down)
        self._packed: list[PackedLinear] = [packer.tensors(s.base_tensors()) for s in stacks]
        packer.close()
        self._router = weights.router_EH.contiguous()
        self._layers = (structs.Layer * 1)()
        self._layers[0].mixture = structs.Mixture(
            router=self._router.data_ptr(),
            bias=self._vector(router.bias),
            correction=self._vector(router.correction),
            gate_up=self._packed[0].struct,
            down=self._packed[1].struct,
            factor=router.factor,
            experts=EXPERTS,
            chosen=CHOSEN,
            inner=INNER,
            normed=router.normed,
            scoring=SCORINGS.index(router.scoring),
            corrects_scores=router.corrects_scores,
            tolerance=router.tolerance,
            interleaved=kind.interleaved,
        )
        mixture = self._layers[0].mixture
        if router.groups is not None:
            mixture.groups, mixture.kept = router.groups
        if kind.clamp is not None:
            mixture.alpha, mixture.limit = kind.clamp
        if kind.biased:
            mixture.gate_up.bias_O = weights.up_bias_EO.data_ptr()
            mixture.down.bias_O = weights.down_bias_EH.data_ptr()
        self._model = structs.Model(
            num_layers=1, hidden=HIDDEN, heads=1, kv_heads=1, head_size=16, inner=0, vocab=16,
            max_rank=8, gated=True, layers=self._layers,
        )  # fmt: skip
        self._engine = built.lorry_engine(
            ctypes.byref(self._model), MOST_TOKENS, MOST_TOKENS, 16, threads
        )
        assert self._engine

    def _vector(self, name: str | None) -> int | None:
        return None if name is None else self._weights.vectors[name].data_ptr()

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


def clear_rows(weights: Weights, router: RouterDescription, tokens: int) -> Tensor:
    """Of which no rounding of a score changes the choice."""
    generator = torch.Generator().manual_seed(6)
    x_TH = torch.randn(8 * MOST_TOKENS, HIDDEN, generator=generator)
    score_TE = x_TH @ weights.router_EH.T
    clear_T = torch.ones(len(x_TH), dtype=torch.bool)
    wanted = chosen(router, score_TE, weights.vectors, CHOSEN)[0].sort(-1).values
    for _ in range(20):
        near_TE = score_TE + 0.01 * torch.randn(score_TE.shape, generator=generator)
        found = chosen(router, near_TE, weights.vectors, CHOSEN)[0].sort(-1).values
        clear_T &= (found == wanted).all(-1)
    return x_TH[clear_T][:tokens]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("router", [PLAIN, replace(PLAIN, normed=False, factor=2.5)], ids=str)
def test_the_chosen_experts_answer(
    router: RouterDescription,
    tokens: int,
    threads: int,
    kind: str,
    make: Callable[..., CompiledMixture],
) -> None:
    weights = Weights.of(kind)
    x_TH = clear_rows(weights, router, tokens)
    assert len(x_TH) == tokens
    expected_TH = weights.answers(x_TH, router)
    found_TH = make(weights, threads=threads, router=router)(x_TH)
    assert_near(found_TH, expected_TH)


def assert_near(found_TH: Tensor, expected_TH: Tensor) -> None:
    near = CLOSE * float(expected_TH.abs().max())
    assert float((found_TH - expected_TH).abs().max()) < near


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "router", [BIASED, CORRECTED, SIGMOID, GROUPED, RAW, SPARSE],
    ids=["bias", "correction", "sigmoid", "groups", "scores", "sparse"],
)  # fmt: skip
def test_each_way_to_choose(
    router: RouterDescription, threads: int, make: Callable[..., CompiledMixture]
) -> None:
    weights = Weights.of("int8")
    x_TH = clear_rows(weights, router, MOST_TOKENS)
    assert len(x_TH) == MOST_TOKENS
    found_TH = make(weights, threads=threads, router=router)(x_TH)
    assert_near(found_TH, weights.answers(x_TH, router))
    # Each part of the formula counts.
    for simpler in (
        replace(router, bias=None, correction=None, corrects_scores=False),
        replace(router, groups=None),
        replace(router, scoring="sparse" if router.scoring == "softmax" else "softmax"),
    ):
        if simpler != router:
            with pytest.raises(AssertionError):
                assert_near(found_TH, weights.answers(x_TH, simpler))


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "kind", [GPT_OSS, replace(GPT_OSS, clamp=None), replace(GPT_OSS, interleaved=False)], ids=str
)
def test_each_kind_of_gate(
    kind: Kind, threads: int, quantization: str, make: Callable[..., CompiledMixture]
) -> None:
    weights = Weights.of(quantization)
    x_TH = clear_rows(weights, BIASED, MOST_TOKENS)
    found_TH = make(weights, threads=threads, router=BIASED, kind=kind)(x_TH)
    assert_near(found_TH, weights.answers(x_TH, BIASED, kind))
    for other in (USUAL, replace(kind, biased=False), replace(kind, clamp=(1.7, 5.0))):
        with pytest.raises(AssertionError):
            assert_near(found_TH, weights.answers(x_TH, BIASED, other))


FORMS = [(PLAIN, USUAL), (BIASED, GPT_OSS), (GROUPED, USUAL), (SPARSE, USUAL), (CORRECTED, USUAL)]


@pytest.mark.parametrize(("router", "form"), FORMS, ids=str)
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_token_does_not_know_its_neighbours(
    kind: str, router: RouterDescription, form: Kind, make: Callable[..., CompiledMixture]
) -> None:
    """Bit for bit, whoever chose the same experts, on any number of threads."""
    weights = Weights.of(kind)
    x_TH = torch.randn(MOST_TOKENS, HIDDEN, generator=torch.Generator().manual_seed(7))
    one, three = (make(weights, threads=n, router=router, kind=form) for n in (1, 3))
    together_TH = one(x_TH)
    assert torch.equal(torch.cat([one(row[None]) for row in x_TH]), together_TH)
    assert torch.equal(three(x_TH.flip(0)).flip(0), together_TH)


def test_every_instruction_set_has_the_same_bits(tmp_path: Path) -> None:
    """The choice too: scores are added up in one order."""
    x_TH = torch.randn(MOST_TOKENS, HIDDEN, generator=torch.Generator().manual_seed(8))
    answers: list[list[Tensor]] = []
    for instructions in runnable():
        built = compiled(instructions, tmp_path)
        answers.append([])
        for kind, (router, form) in product(("int8", "nf4"), FORMS):
            mixture = CompiledMixture(built, Weights.of(kind), threads=2, router=router, kind=form)
            answers[-1].append(mixture(x_TH))
            mixture.close()
    if len(answers) < 2:
        pytest.skip(f"this processor has {library.instructions()} alone")
    first, *others = answers
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, first, strict=True))


def test_the_first_of_equals_is_chosen(make: Callable[..., CompiledMixture]) -> None:
    weights = Weights.of("int8")
    weights.router_EH.copy_(weights.router_EH[:1].expand(EXPERTS, -1).clone())
    x_TH = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(9))
    expected_TH = sum(weights.expert(expert, x_TH) for expert in range(CHOSEN)) / CHOSEN
    assert_near(make(weights)(x_TH), expected_TH)


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
