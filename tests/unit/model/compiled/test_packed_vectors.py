"""DoRA, (IA)3 and biases in the compiled step: the C function against torch's own deltas."""

from __future__ import annotations

import ctypes
import dataclasses
import random
from collections.abc import Sequence
from contextlib import closing

import pytest
import torch
from torch import Tensor

from lorry.model.compiled.adapter import codes_of
from lorry.model.compiled.packed_vectors import KNOWN_SCALES, VectorDeltas, fits, vector_deltas_of
from lorry.model.dense import dense_weight
from lorry.model.int8 import Int8Linear
from lorry_adapters.lora.effects import (
    Dora,
    Effect,
    EffectTarget,
    InputGain,
    OutputGain,
    OwnBias,
    PairBias,
)
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.sparse import Sparse
from lorry_adapters.lora.vector_deltas import BoundDora, Delta, InwardGain
from support.compiled_module import NUM_SLOTS, CompiledModule, Uses

SHAPES = [(16, 16), (64, 48), (80, 208), (576, 192), (48, 528)]
"""In, out: one block and several, even and odd numbers of them."""

SCALES = (1.0, 0.5, -0.7, 2.0, -1.5, 1e-3)

PLAIN, DORA = "a pair", "DoRA"
KINDS = (
    (PLAIN,),
    (DORA,),
    (PLAIN, PairBias),
    (PLAIN, OwnBias),
    (PLAIN, PairBias, OwnBias),
    (DORA, OwnBias),
    (OutputGain,),
    (InputGain,),
    (InputGain, OwnBias),
    (InputGain, OutputGain),
    (PLAIN, OutputGain, InputGain, OwnBias),
)
Kind = tuple[object, ...]


class Held:
    """An adapter on one linear: for the compiled step, and for torch."""

    def __init__(self, kind: Kind, linear: Int8Linear, dice: torch.Generator) -> None:
        base = EffectTarget(
            linear, lambda: dense_weight(linear), torch.float32, torch.device("cpu")
        )
        out = linear.out_features
        rank = int(torch.randint(1, 25, (), generator=dice))
        pair = LoraPair(
            torch.randn(rank, linear.in_features, generator=dice) / linear.in_features**0.5,
            torch.randn(out, rank, generator=dice),
            0.7,
        )
        effects: dict[object, Effect] = {
            PairBias: PairBias(torch.randn(out, generator=dice), 1.3),
            OwnBias: OwnBias(torch.randn(out, generator=dice)),
            OutputGain: OutputGain(torch.randn(out, generator=dice)),
            InputGain: InputGain(torch.randn(linear.in_features, generator=dice)),
            DORA: Dora(pair.a_RI, pair.b_OR, torch.rand(out, generator=dice) * 9, pair.scaling),
        }
        bound = [effects[part].bind(base) for part in kind if part in effects]
        self.deltas: list[Delta] = [delta for delta in bound if delta is not None]
        self.pair = pair if PLAIN in kind else None
        # In 8 bits for torch as well: what that costs is test_adapter.py's.
        codes = codes_of(pair)
        a_RI, b_OR = codes.a_RI.float(), codes.b_OR.float() * codes.scale_O.float().unsqueeze(1)
        self._torch: list[Delta] = [
            dataclasses.replace(delta, a_RI=a_RI, b_OR=b_OR / pair.scaling, _held=[], _known={})
            if isinstance(delta, BoundDora)
            else delta
            for delta in self.deltas
        ]
        if self.pair is not None:
            self._torch.append(lambda x_MI, y_MO, scale_M1: x_MI @ a_RI.T @ b_OR.T * scale_M1)

    def added(self, x_1I: Tensor, y_1O: Tensor, scale: float) -> list[Tensor]:
        return [delta(x_1I, y_1O, torch.tensor([[scale]])) for delta in self._torch]


def linear_of(inputs: int, outputs: int, *, bias: bool, dice: torch.Generator) -> Int8Linear:
    codes_OI = torch.randint(-127, 128, (outputs, inputs), generator=dice, dtype=torch.int8)
    scale_O = torch.rand(outputs, generator=dice) / 50 + 1e-3
    return Int8Linear(codes_OI, scale_O, torch.randn(outputs, generator=dice) if bias else None)


class Scene:
    """A linear, some adapters on it, some tokens, and who wants what."""

    def __init__(self, seed: int) -> None:
        luck, dice = random.Random(seed), torch.Generator().manual_seed(seed)
        self.linear = linear_of(*SHAPES[seed % len(SHAPES)], bias=seed % 2 == 0, dice=dice)
        kinds = [luck.choice(KINDS) for _ in range(NUM_SLOTS - 1)]
        # The last slot stays empty.
        self.held = {slot: Held(kind, self.linear, dice) for slot, kind in enumerate(kinds, 1)}
        count = luck.randrange(1, 21)
        self.x_TI = torch.randn(count, self.linear.in_features, generator=dice)
        self.x_TI[:, 3] *= 10
        self.wishes = [
            [
                (slot, luck.choice(SCALES))
                for slot in sorted(luck.sample(range(1, NUM_SLOTS + 1), luck.choice((0, 1, 1, 3))))
            ]
            for _ in range(count)
        ]

    def uses(self, tokens: Sequence[int]) -> Uses:
        """Of these tokens, as they lie one after the other."""
        return sorted(
            (slot, at, scale)
            for at, token in enumerate(tokens)
            for slot, scale in self.wishes[token]
        )

    def place(self, module: CompiledModule) -> None:
        for slot, held in self.held.items():
            module.place(slot, held.pair, held.deltas)

    def expected(self, token: int) -> tuple[Tensor, float]:
        """The answer, and the size of what it is the sum of."""
        x_1I = self.x_TI[token : token + 1]
        base_1O = self.linear(x_1I)
        parts = [base_1O]
        for slot, scale in self.wishes[token]:
            if slot in self.held:
                parts += self.held[slot].added(x_1I, base_1O, scale)
        return torch.stack(parts).sum(0)[0], sum(float(part.norm()) for part in parts)


@pytest.mark.parametrize("seed", range(40))
def test_the_answers_are_those_of_torchs_deltas(built: ctypes.CDLL, seed: int) -> None:
    scene = Scene(seed)
    with closing(CompiledModule(built, scene.linear, 1 + seed % 3)) as module:
        scene.place(module)
        tokens = range(len(scene.x_TI))
        found_TO = module(scene.x_TI, scene.uses(tokens))
    for token in tokens:
        wanted_O, size = scene.expected(token)
        # Activations and a pair's inside are rounded to 13 bits.
        assert float((found_TO[token] - wanted_O).norm()) < 3e-3 * size, (
            token,
            scene.wishes[token],
        )


@pytest.mark.parametrize("seed", range(40, 55))
def test_a_tokens_bits_do_not_depend_on_its_company(built: ctypes.CDLL, seed: int) -> None:
    scene = Scene(seed)
    alone: dict[int, Tensor] = {}
    luck = random.Random(seed)
    for threads in (1, 2, 5, 32):
        with closing(CompiledModule(built, scene.linear, threads)) as module:
            scene.place(module)
            tokens = list(range(len(scene.x_TI)))
            for token in tokens:
                one_O = module(scene.x_TI[token : token + 1], scene.uses([token]))[0]
                assert torch.equal(alone.setdefault(token, one_O), one_O)
            for _ in range(4):
                some = luck.sample(tokens, luck.randrange(1, len(tokens) + 1))
                together_TO = module(scene.x_TI[some], scene.uses(some))
                for at, token in enumerate(some):
                    assert torch.equal(together_TO[at], alone[token])


def test_a_slot_forgets_its_vectors(built: ctypes.CDLL) -> None:
    dice = torch.Generator().manual_seed(7)
    linear = linear_of(64, 48, bias=True, dice=dice)
    x_TI = torch.randn(3, 64, generator=dice)
    held = [Held(kind, linear, dice) for kind in KINDS]
    with closing(CompiledModule(built, linear)) as module:
        fresh = []
        for one in held:
            with closing(CompiledModule(built, linear)) as new:
                new.place(2, one.pair, one.deltas)
                fresh.append(new(x_TI, [(2, 1, 0.5)]))
        for one, expected in [*zip(held, fresh, strict=True)] * 2:
            module.place(2, one.pair, one.deltas)
            assert torch.equal(module(x_TI, [(2, 1, 0.5)]), expected)
            module.place(2)
            assert torch.equal(module(x_TI, [(2, 1, 0.5)]), module(x_TI, []))


# ---- scales


def vectors(kind: Kind, seed: int = 3) -> VectorDeltas:
    dice = torch.Generator().manual_seed(seed)
    linear = linear_of(64, 48, bias=True, dice=dice)
    made = vector_deltas_of({"m": Held(kind, linear, dice).deltas}, [], [["n"], ["m"]])
    assert made is not None
    return made


def test_a_scale_is_bound_once() -> None:
    mine = vectors((DORA,))
    first = mine.at([1.0])[1.0]
    assert mine.at([0.5, 1.0])[1.0] is first
    assert mine.at([1.0, 0.5])[0.5] is not first


@pytest.mark.parametrize(
    ("kind", "pairs", "phases", "instead"),
    [
        ((InputGain,), [], [["n"], ["m"]], True),
        ((InputGain, OwnBias), [], [["n"], ["m"]], True),
        ((InputGain,), ["n"], [["n"], ["m"]], True),
        ((InputGain,), ["m"], [["n"], ["m"]], False),
        ((InputGain,), [], [["n", "m"]], False),
        ((InputGain, OutputGain), [], [["n"], ["m"]], False),
        ((OwnBias,), [], [["n"], ["m"]], False),
    ],
    ids=[
        "nothing else",
        "a bias",
        "a pair elsewhere",
        "a pair",
        "another linear reads it",
        "a gain of the answer",
        "none",
    ],
)
def test_what_goes_in_is_replaced_where_nobody_reads_it(
    kind: Kind, pairs: list[str], phases: list[list[str]], instead: bool
) -> None:
    dice = torch.Generator().manual_seed(3)
    linear = linear_of(64, 48, bias=True, dice=dice)
    made = vector_deltas_of({"m": Held(kind, linear, dice).deltas}, pairs, phases)
    assert made is not None
    assert made.at([1.0])[1.0].table_M["instead"].tolist() == [False, instead]


def test_scales_in_use_are_kept_and_few_others() -> None:
    mine = vectors((DORA,))
    many = [0.1 * i for i in range(1, 3 * KNOWN_SCALES)]
    once = mine.at(many)
    assert mine.at(many) == once
    size = mine.nbytes
    mine.at([1.0])
    assert mine.nbytes < size
    again = mine.at(many[-(KNOWN_SCALES - 1) :])
    assert all(again[scale] is once[scale] for scale in again)
    assert mine.at(many[:1])[many[0]] is not once[many[0]]


def test_a_linear_that_an_adapter_leaves_alone_has_no_vectors() -> None:
    table_M = vectors((DORA, OwnBias)).at([1.0])[1.0].table_M
    assert not any(table_M[0])
    assert table_M[1]["more_O"] and table_M[1]["shift_O"] and not table_M[1]["inward_I"]


# ---- what the step knows


def bound(*effects: Effect) -> list[Delta]:
    linear = linear_of(64, 48, bias=False, dice=torch.Generator().manual_seed(1))
    base = EffectTarget(linear, lambda: dense_weight(linear), torch.float32, torch.device("cpu"))
    return [delta for effect in effects if (delta := effect.bind(base)) is not None]


A_DORA = Dora(torch.ones(2, 64), torch.ones(48, 2), torch.ones(48), 1.0)
GAIN, BIAS = OutputGain(torch.ones(48)), OwnBias(torch.ones(48))
INWARD = InputGain(torch.ones(64))
OTHER = Sparse(torch.zeros(1), torch.zeros(1), torch.ones(1), (48, 64))


@pytest.mark.parametrize(
    ("deltas", "pairs", "fit"),
    [
        ({}, ["m"], True),
        ({"m": bound(A_DORA, BIAS), "head": bound(GAIN)}, [], True),
        ({"m": bound(GAIN, INWARD)}, ["m"], True),
        ({"m": bound(BIAS), "norm": bound(BIAS)}, ["m"], False),
        ({"m": bound(A_DORA), "head": bound(OTHER)}, [], False),
        ({"m": bound(A_DORA)}, ["m"], False),
        ({"m": bound(A_DORA, GAIN)}, [], False),
        ({"m": bound(INWARD, INWARD)}, [], False),
        ({"head": bound(INWARD)}, [], False),
    ],
    ids=[
        "pairs alone",
        "all known",
        "beside a pair",
        "a module that it has not",
        "one that it does not know",
        "two pairs in one",
        "two vectors in one",
        "two inputs in one",
        "the head's input",
    ],
)
def test_all_of_an_adapter_fits_or_none(
    deltas: dict[str, list[Delta]], pairs: list[str], fit: bool
) -> None:
    assert fits(deltas, pairs, ["m", "head"], "head") is fit


def test_an_input_gain_counts_in_codes_of_its_own() -> None:
    """What `InwardGain` promises and the compiled step keeps: the base rounds the scaled input."""
    (delta,) = bound(InputGain(torch.full((64,), 3.0)))
    assert isinstance(delta, InwardGain)
    x_1I = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    y_1O = delta.module(x_1I)
    assert torch.allclose(y_1O + delta(x_1I, y_1O, torch.ones(1, 1)), delta.module(3 * x_1I))
