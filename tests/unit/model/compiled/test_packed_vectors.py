"""DoRA, (IA)3 and biases in the compiled step: the C function against torch's own deltas."""

from __future__ import annotations

import ctypes
import dataclasses
import random
from collections.abc import Sequence
from functools import partial

import pytest
import torch

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
from lorry_adapters.lora.vector_deltas import BoundDora, Delta, InwardGain
from support.linear_scene import Held, LinearScene, check_a_slot_forgets, linear_of

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


def held(kind: Kind, linear: Int8Linear, dice: torch.Generator, luck: random.Random) -> Held:
    base = EffectTarget(linear, lambda: dense_weight(linear), torch.float32, torch.device("cpu"))
    out, rank = linear.out_features, luck.randrange(1, 25)
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
    found = [effects[part].bind(base) for part in kind if part in effects]
    deltas: list[Delta] = [delta for delta in found if delta is not None]
    # In 8 bits for torch as well: test_adapter.py has the cost of that.
    codes = codes_of(pair)
    a_RI, b_OR = codes.a_RI.float(), codes.b_OR.float() * codes.scale_O.float().unsqueeze(1)
    exact: list[Delta] = [
        dataclasses.replace(delta, a_RI=a_RI, b_OR=b_OR / pair.scaling, _held=[], _known={})
        if isinstance(delta, BoundDora)
        else delta
        for delta in deltas
    ]
    if PLAIN in kind:
        exact.append(lambda x_MI, y_MO, scale_M1: x_MI @ a_RI.T @ b_OR.T * scale_M1)
    return Held(pair if PLAIN in kind else None, deltas, exact)


def scene(seed: int) -> LinearScene:
    return LinearScene(
        seed, lambda linear, dice, luck: held(luck.choice(KINDS), linear, dice, luck)
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_answers_are_those_of_torchs_deltas(built: ctypes.CDLL, seed: int) -> None:
    scene(seed).check_answers(built)


@pytest.mark.parametrize("seed", range(40, 55))
def test_a_tokens_bits_do_not_depend_on_its_company(built: ctypes.CDLL, seed: int) -> None:
    scene(seed).check_company(built)


def test_a_slot_forgets_its_vectors(built: ctypes.CDLL) -> None:
    check_a_slot_forgets(built, [partial(held, kind) for kind in KINDS])


# ---- scales


def vectors(
    kind: Kind, pairs: Sequence[str] = (), phases: Sequence[list[str]] = (["n"], ["m"])
) -> VectorDeltas:
    dice = torch.Generator().manual_seed(3)
    linear = linear_of(64, 48, bias=True, dice=dice)
    deltas = held(kind, linear, dice, random.Random(3)).deltas
    made = vector_deltas_of({"m": deltas}, pairs, phases)
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
    made = vectors(kind, pairs, phases)
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


@pytest.mark.parametrize(
    ("deltas", "pairs", "fit"),
    [
        ({}, ["m"], True),
        ({"m": bound(A_DORA, BIAS), "head": bound(GAIN)}, [], True),
        ({"m": bound(GAIN, INWARD)}, ["m"], True),
        ({"m": bound(BIAS), "norm": bound(BIAS)}, ["m"], False),
        ({"m": bound(A_DORA), "head": [lambda x, y, scale: y]}, [], False),
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
