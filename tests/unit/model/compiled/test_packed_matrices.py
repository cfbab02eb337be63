"""Kronecker products, rotations, shared pairs and whole changes in the compiled step: the C
function against torch's own deltas."""

from __future__ import annotations

import ctypes
import dataclasses
import random
from collections.abc import Callable, Sequence
from contextlib import closing

import pytest
import torch
from torch import Tensor

from lorry.model.compiled.adapter import codes_of
from lorry.model.compiled.packed_matrices import ROOM, quantized, room_of
from lorry.model.compiled.packed_vectors import fits
from lorry.model.dense import dense_weight
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
from lorry_adapters.lora.vector_deltas import Delta
from support.compiled_module import NUM_SLOTS, CompiledModule, Uses

SHAPES = [(16, 16), (64, 48), (80, 208), (576, 192), (48, 528)]
"""In, out."""
SCALES = (1.0, 0.5, -0.7, 2.0, -1.5)
PAIR = "a pair"
KINDS = (
    (PAIR,),
    (BoundKronecker,),
    (BoundTurn,),
    (BoundChange,),
    (BoundPair,),
    (BoundShared,),
    (PAIR, BoundKronecker, OwnBias),
    (PAIR, BoundChange, BoundTurn),
    (BoundShared, OwnBias, BoundKronecker),
    (BoundTurn, OutputGain),
    (BoundPair, BoundTurn, BoundKronecker, BoundChange, OwnBias),
)
Kind = tuple[object, ...]
CPU = (torch.float32, torch.device("cpu"))


def divided(size: int, luck: random.Random) -> tuple[int, int]:
    one = luck.choice([n for n in range(1, size + 1) if size % n == 0])
    return one, size // one


def linear_of(inputs: int, outputs: int, *, bias: bool, dice: torch.Generator) -> Int8Linear:
    codes_OI = torch.randint(-127, 128, (outputs, inputs), generator=dice, dtype=torch.int8)
    scale_O = torch.rand(outputs, generator=dice) / 50 + 1e-3
    return Int8Linear(codes_OI, scale_O, torch.randn(outputs, generator=dice) if bias else None)


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
    """For torch, with the numbers that the step has: what that costs is said elsewhere."""
    if isinstance(delta, BoundPair):
        codes = codes_of(LoraPair(delta.a_RI, delta.b_OR, 1.0))
        b_OR = codes.b_OR.float() * codes.scale_O.float()[:, None]
        return dataclasses.replace(delta, a_RI=codes.a_RI.float(), b_OR=b_OR, _held=[])
    if isinstance(delta, BoundChange):
        tensors = quantized(built, delta.change_OI).tensors()
        return BoundChange((tensors["codes"] * tensors["scale"][:, None]).float())
    if isinstance(delta, BoundTurn):
        return dataclasses.replace(delta, blocks_NSS=delta.blocks_NSS.half().float(), _held=[])
    if isinstance(delta, BoundShared):
        # A's codes as they are, their scales within B: d stands between the two.
        codes = codes_of(LoraPair(delta.a_RI[:, :inputs], delta.b_OR, 1.0))
        b_OR = codes.b_OR.float() * codes.scale_O.float()[:, None]
        return dataclasses.replace(delta, a_RI=codes.a_RI.float(), b_OR=b_OR)
    return delta


class Held:
    def __init__(
        self,
        built: ctypes.CDLL,
        kind: Kind,
        linear: Int8Linear,
        dice: torch.Generator,
        luck: random.Random,
    ) -> None:
        rank = luck.randrange(1, 25)
        inputs, outputs = linear.in_features, linear.out_features
        a_RI = torch.randn(rank, inputs, generator=dice) / inputs**0.5
        pair = LoraPair(a_RI, torch.randn(outputs, rank, generator=dice), 0.7)
        self.pair = pair if PAIR in kind else None
        self.deltas = [made(part, linear, dice, luck) for part in kind if part != PAIR]
        self.exact = [held_in_fewer_bits(built, delta, inputs) for delta in self.deltas]
        if self.pair is not None:
            low = BoundPair(pair.a_RI, pair.b_OR * pair.scaling, *CPU)
            self.exact.append(held_in_fewer_bits(built, low, inputs))


class Scene:
    """A linear, some adapters on it, some tokens, and who wants what."""

    def __init__(self, built: ctypes.CDLL, seed: int) -> None:
        luck, dice = random.Random(seed), torch.Generator().manual_seed(seed)
        self.linear = linear_of(*SHAPES[seed % len(SHAPES)], bias=seed % 2 == 0, dice=dice)
        kinds = [luck.choice(KINDS) for _ in range(NUM_SLOTS - 1)]
        self.held = {
            slot: Held(built, kind, self.linear, dice, luck) for slot, kind in enumerate(kinds, 1)
        }
        count = luck.randrange(1, 21)
        self.x_TI = torch.randn(count, self.linear.in_features, generator=dice)
        self.x_TI[:, 3] *= 10
        alike = [(luck.randrange(1, NUM_SLOTS), luck.choice(SCALES))]
        self.wishes = [
            alike
            if luck.random() < 0.4
            else [
                (slot, luck.choice(SCALES))
                for slot in sorted(luck.sample(range(1, NUM_SLOTS + 1), luck.choice((0, 1, 1, 3))))
            ]
            for _ in range(count)
        ]

    def uses(self, tokens: Sequence[int]) -> Uses:
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
                at = torch.tensor([[scale]])
                parts += [delta(x_1I, base_1O, at) for delta in self.held[slot].exact]
        return torch.stack(parts).sum(0)[0], sum(float(part.norm()) for part in parts)


@pytest.mark.parametrize("seed", range(30))
def test_the_answers_are_those_of_torchs_deltas(built: ctypes.CDLL, seed: int) -> None:
    scene = Scene(built, seed)
    with closing(CompiledModule(built, scene.linear, 1 + seed % 3)) as module:
        scene.place(module)
        tokens = range(len(scene.x_TI))
        found_TO = module(scene.x_TI, scene.uses(tokens))
    for token in tokens:
        wanted_O, size = scene.expected(token)
        assert float((found_TO[token] - wanted_O).norm()) < 3e-3 * size, scene.wishes[token]


@pytest.mark.parametrize("seed", range(40, 52))
def test_a_tokens_bits_do_not_depend_on_its_company(built: ctypes.CDLL, seed: int) -> None:
    scene = Scene(built, seed)
    alone: dict[int, Tensor] = {}
    luck = random.Random(seed)
    for threads in (1, 2, 5):
        with closing(CompiledModule(built, scene.linear, threads)) as module:
            scene.place(module)
            tokens = list(range(len(scene.x_TI)))
            for token in tokens:
                one_O = module(scene.x_TI[token : token + 1], scene.uses([token]))[0]
                assert torch.equal(alone.setdefault(token, one_O), one_O)
            together_TO = module(scene.x_TI, scene.uses(tokens))
            assert all(torch.equal(together_TO[token], alone[token]) for token in tokens)
            for _ in range(3):
                some = luck.sample(tokens, luck.randrange(1, len(tokens) + 1))
                together_TO = module(scene.x_TI[some], scene.uses(some))
                for at, token in enumerate(some):
                    assert torch.equal(together_TO[at], alone[token])


def test_a_slot_forgets_its_matrices(built: ctypes.CDLL) -> None:
    dice, luck = torch.Generator().manual_seed(7), random.Random(7)
    linear = linear_of(64, 48, bias=True, dice=dice)
    x_TI = torch.randn(3, 64, generator=dice)
    held = [Held(built, kind, linear, dice, luck) for kind in KINDS]
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


# ---- what the step knows


def some(part: object) -> Delta:
    linear = linear_of(64, 48, bias=False, dice=torch.Generator().manual_seed(1))
    return made(part, linear, torch.Generator().manual_seed(1), random.Random(1))


@pytest.mark.parametrize("part", [BoundTurn, BoundKronecker, BoundChange, BoundPair, BoundShared])
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
