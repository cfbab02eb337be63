"""Kronecker products, rotations, shared pairs and whole changes in the compiled step: the C
function against torch's own deltas."""

from __future__ import annotations

import ctypes
import dataclasses
import random
from collections.abc import Callable
from contextlib import closing
from functools import partial

import pytest
import torch
from torch import Tensor

from lorry.model.compiled.adapter import codes_of
from lorry.model.compiled.packed_matrices import ROOM, quantized, room_of
from lorry.model.compiled.packed_sparse import codes_of as codes_of_sparse
from lorry.model.compiled.packed_sparse import pack_sparse
from lorry.model.compiled.packed_vectors import fits
from lorry.model.dense import dense_weight
from lorry.model.guard import Unsafe
from lorry.model.int8 import Int8Linear
from lorry_adapters.lora.effects import EffectTarget, InputGain, OutputGain, OwnBias
from lorry_adapters.lora.matrix_deltas import (
    BoundChange,
    BoundKronecker,
    BoundPair,
    BoundShared,
    BoundTurn,
)
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.sparse import BoundSparse
from lorry_adapters.lora.vector_deltas import Delta
from support.compiled_module import CompiledModule, silent
from support.linear_scene import Held, LinearScene, check_a_slot_forgets, linear_of

PAIR = "a pair"
KINDS = (
    (PAIR,),
    (BoundKronecker,),
    (BoundTurn,),
    (BoundChange,),
    (BoundSparse,),
    (BoundPair,),
    (BoundShared,),
    (PAIR, BoundKronecker, OwnBias),
    (PAIR, BoundChange, BoundTurn),
    (PAIR, BoundSparse, OutputGain),
    (BoundSparse, BoundKronecker, OwnBias),
    (BoundShared, OwnBias, BoundKronecker),
    (BoundTurn, OutputGain),
    (BoundPair, BoundTurn, BoundKronecker, BoundChange, OwnBias),
)
Kind = tuple[object, ...]
CPU = (torch.float32, torch.device("cpu"))


def divided(size: int, luck: random.Random) -> tuple[int, int]:
    one = luck.choice([n for n in range(1, size + 1) if size % n == 0])
    return one, size // one


def shared_matrices(rank: int) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(rank)
    return torch.rand(rank, 600, generator=dice) - 0.5, torch.rand(530, rank, generator=dice) - 0.5


def made(part: object, linear: Int8Linear, dice: torch.Generator, luck: random.Random) -> Delta:
    inputs, outputs = linear.in_features, linear.out_features

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice)

    if part is BoundKronecker:
        while True:
            (a, b), (c, d) = divided(outputs, luck), divided(inputs, luck)
            found = BoundKronecker(draw(a, c) / c**0.5, draw(b, d) / d**0.5, *CPU)
            if room_of(found) <= ROOM:
                return found
    if part is BoundTurn:
        size = luck.choice([n for n in (1, 2, 8, 12, 16, 32, 40, 48) if inputs % n == 0])
        return BoundTurn(draw(inputs // size, size, size) / size**0.5, linear, *CPU)
    if part is BoundChange:
        return BoundChange(draw(outputs, inputs) / inputs**0.5)
    if part is BoundSparse:
        kept = torch.rand(outputs, inputs, generator=dice) < luck.choice([0.0, 0.01, 0.1, 1.0])
        # Some outputs have all, some none, some only what is far behind.
        kept[luck.randrange(outputs)] = True
        kept[luck.randrange(outputs)] = False
        kept[luck.randrange(outputs), : inputs // 2] = False
        change_OI = torch.where(kept, draw(outputs, inputs), 0)
        return BoundSparse((change_OI / inputs**0.5).to_sparse_csr())
    if part is BoundPair:
        return BoundPair(draw(5, inputs) / inputs**0.5, draw(outputs, 5), *CPU)
    if part is BoundShared:
        rank = luck.choice([9, 40])
        a_RI, b_OR = shared_matrices(rank)
        return BoundShared(a_RI, b_OR, draw(rank), draw(outputs))
    base = EffectTarget(linear, lambda: dense_weight(linear), *CPU)
    effect = {
        OwnBias: OwnBias(draw(outputs)),
        OutputGain: OutputGain(draw(outputs)),
        InputGain: InputGain(draw(inputs)),
    }[part]  # type: ignore[index]
    bound = effect.bind(base)
    assert bound is not None
    return bound


def held_in_fewer_bits(built: ctypes.CDLL, delta: Delta, inputs: int) -> Delta:
    """Return the delta for torch, with the rounded numbers that the step holds."""
    if isinstance(delta, BoundPair):
        codes = codes_of(LoraPair(delta.a_RI, delta.b_OR, 1.0))
        b_OR = codes.b_OR.float() * codes.scale_O.float()[:, None]
        return dataclasses.replace(delta, a_RI=codes.a_RI.float(), b_OR=b_OR, _held=[])
    if isinstance(delta, BoundChange):
        tensors = quantized(built, delta.change_OI).tensors()
        return BoundChange((tensors["codes"] * tensors["scale"][:, None]).float())
    if isinstance(delta, BoundSparse):
        code_N, scale_O = map(torch.from_numpy, codes_of_sparse(delta.sparse_OI))
        exact_OI = delta.sparse_OI.to_dense()
        exact_OI[exact_OI != 0] = code_N.float()
        return BoundChange(exact_OI * scale_O[:, None])
    if isinstance(delta, BoundTurn):
        return dataclasses.replace(delta, blocks_NSS=delta.blocks_NSS.half().float(), _held=[])
    if isinstance(delta, BoundShared):
        # A's codes as they are, their scales within B: d stands between the two.
        codes = codes_of(LoraPair(delta.a_RI[:, :inputs], delta.b_OR, 1.0))
        b_OR = codes.b_OR.float() * codes.scale_O.float()[:, None]
        return dataclasses.replace(delta, a_RI=codes.a_RI.float(), b_OR=b_OR)
    return delta


def held(
    built: ctypes.CDLL, kind: Kind, linear: Int8Linear, dice: torch.Generator, luck: random.Random
) -> Held:
    rank = luck.randrange(1, 25)
    inputs, outputs = linear.in_features, linear.out_features
    a_RI = torch.randn(rank, inputs, generator=dice) / inputs**0.5
    pair = LoraPair(a_RI, torch.randn(outputs, rank, generator=dice), 0.7)
    deltas = [made(part, linear, dice, luck) for part in kind if part != PAIR]
    whole = deltas
    if PAIR in kind:
        whole = [*deltas, BoundPair(pair.a_RI, pair.b_OR * pair.scaling, *CPU)]
    exact = [held_in_fewer_bits(built, delta, inputs) for delta in whole]
    return Held(pair if PAIR in kind else None, deltas, exact)


def scene(built: ctypes.CDLL, seed: int) -> LinearScene:
    return LinearScene(
        seed, lambda linear, dice, luck: held(built, luck.choice(KINDS), linear, dice, luck)
    )


@pytest.mark.parametrize("seed", range(30))
def test_the_answers_are_those_of_torchs_deltas(built: ctypes.CDLL, seed: int) -> None:
    scene(built, seed).check_answers(built)


@pytest.mark.parametrize("seed", range(40, 52))
def test_a_tokens_bits_do_not_depend_on_its_company(built: ctypes.CDLL, seed: int) -> None:
    scene(built, seed).check_company(built)


def test_a_slot_forgets_its_matrices(built: ctypes.CDLL) -> None:
    check_a_slot_forgets(built, [partial(held, built, kind) for kind in KINDS])


def test_adapters_with_the_same_matrices_share_them(built: ctypes.CDLL) -> None:
    dice = torch.Generator().manual_seed(7)
    linear = linear_of(64, 48, bias=True, dice=dice)
    a_RI, b_OR = shared_matrices(40)

    def own(a_RI: Tensor) -> BoundShared:
        d_R, b_O = torch.randn(40, generator=dice), torch.randn(48, generator=dice)
        return BoundShared(a_RI, b_OR, d_R, b_O)

    with closing(CompiledModule(built, linear)) as module:
        module.place(1, None, [own(a_RI)])
        first = module.slot_bytes
        module.place(2, None, [own(a_RI.clone())])
        assert module.slot_bytes - first < first / 10
        module.place(3, None, [own(a_RI + 1)])
        assert module.slot_bytes > 2 * first


def far_apart(inputs: int, outputs: int) -> BoundSparse:
    """The first output has its first and last numbers, the second none, the third all."""
    change_OI = torch.zeros(outputs, inputs)
    change_OI[0, 0], change_OI[0, -1], change_OI[2] = 1, 2, 3
    return BoundSparse(change_OI.to_sparse_csr())


@pytest.mark.parametrize("tokens", [1, 3, 4, 20])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 16), (272, 48), (16, 80)])
def test_a_few_numbers_far_from_each_other(
    built: ctypes.CDLL, inputs: int, outputs: int, tokens: int
) -> None:
    dice = torch.Generator().manual_seed(3)
    x_TI = torch.randn(tokens, inputs, generator=dice)
    wanted_TO = torch.zeros(tokens, outputs)
    wanted_TO[:, 0], wanted_TO[:, 2] = x_TI[:, 0] + 2 * x_TI[:, -1], 3 * x_TI.sum(1)
    with closing(CompiledModule(built, silent(inputs, outputs), 2)) as module:
        module.place(1, None, [far_apart(inputs, outputs)])
        found_TO = module(x_TI, [(1, token, 0.5) for token in range(tokens)])
    # The first output's numbers are codes of 8 bits: one of 1 in units of 2 / 127.
    assert float((2 * found_TO - wanted_TO).abs().max()) < 0.01 * float(wanted_TO.abs().max())


def test_places_outside_the_weight_are_refused() -> None:
    places = torch.tensor([0, 1, *[1] * 15]), torch.tensor([64])
    wrong = torch.sparse_csr_tensor(*places, torch.ones(1), (16, 64), check_invariants=False)
    with pytest.raises(Unsafe, match="outside"):
        pack_sparse(wrong)


# ---- what the step knows


def some(part: object) -> Delta:
    linear = linear_of(64, 48, bias=False, dice=torch.Generator().manual_seed(1))
    return made(part, linear, torch.Generator().manual_seed(1), random.Random(1))


@pytest.mark.parametrize(
    "part", [BoundTurn, BoundKronecker, BoundChange, BoundSparse, BoundPair, BoundShared]
)
def test_one_of_each_fits_on_a_linear_of_a_layer(part: Callable[..., Delta]) -> None:
    delta = some(part)

    def fit(name: str, mine: list[Delta], rank: int = 40, room: int = ROOM) -> bool:
        return fits({name: mine}, [], ["m", "head"], "head", rank=rank, room=room)

    assert fit("m", [delta])
    assert not fit("m", [delta, delta])
    assert not fit("head", [delta])
    paired = isinstance(delta, BoundPair | BoundShared)
    assert fits({"m": [delta]}, ["m"], ["m"], "head", rank=40, room=ROOM) is not paired
    assert fit("m", [delta], rank=4) is not paired
    assert fit("m", [delta], room=10) is not isinstance(delta, BoundKronecker)
