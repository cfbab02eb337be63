"""A linear with adapters on it, and tokens that want some of them: the compiled step's answers
against torch's own deltas."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from lorry.model.int8 import Int8Linear
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.vector_deltas import Delta
from support.compiled_module import NUM_SLOTS, CompiledModule, Uses
from support.plain_product import PlainProduct

SHAPES = [(16, 16), (64, 48), (80, 208), (576, 192), (48, 528)]
"""In, out: one block and several, even and odd numbers of them."""

SCALES = (1.0, 0.5, -0.7, 2.0, -1.5, 1e-3)


@dataclass(frozen=True)
class Held:
    """An adapter on one linear."""

    pair: LoraPair | None
    deltas: Sequence[Delta]
    exact: Sequence[Delta]
    """All of it for torch, rounded as the compiled step holds it."""


Make = Callable[[Int8Linear, torch.Generator, random.Random], Held]


def linear_of(inputs: int, outputs: int, *, bias: bool, dice: torch.Generator) -> Int8Linear:
    codes_OI = torch.randint(-127, 128, (outputs, inputs), generator=dice, dtype=torch.int8)
    scale_O = torch.rand(outputs, generator=dice) / 50 + 1e-3
    return PlainProduct(codes_OI, scale_O, torch.randn(outputs, generator=dice) if bias else None)


class LinearScene:
    """`make` draws the adapter of each slot but the last, which stays empty."""

    def __init__(self, seed: int, make: Make) -> None:
        luck, dice = random.Random(seed), torch.Generator().manual_seed(seed)
        self.seed = seed
        self.linear = linear_of(*SHAPES[seed % len(SHAPES)], bias=seed % 2 == 0, dice=dice)
        self.held = {slot: make(self.linear, dice, luck) for slot in range(1, NUM_SLOTS)}
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

    def check_answers(self, built: ctypes.CDLL) -> None:
        with closing(CompiledModule(built, self.linear, 1 + self.seed % 3)) as module:
            self._place(module)
            tokens = range(len(self.x_TI))
            found_TO = module(self.x_TI, self._uses(tokens))
        for token in tokens:
            wanted_O, size = self._expected(token)
            # An adapter's activations and a pair's inside are rounded to 13 bits. What several
            # change in the base's input is added up there before it is rounded to 8.
            most = 3e-3 if len(self.wishes[token]) < 2 else 1e-2
            assert float((found_TO[token] - wanted_O).norm()) < most * size, self.wishes[token]

    def check_company(self, built: ctypes.CDLL) -> None:
        """Each token has the same bits alone, among all and among some, on any number of
        threads."""
        alone: dict[int, Tensor] = {}
        luck = random.Random(self.seed)
        tokens = list(range(len(self.x_TI)))
        for threads in (1, 2, 5, 32):
            with closing(CompiledModule(built, self.linear, threads)) as module:
                self._place(module)
                for token in tokens:
                    one_O = module(self.x_TI[token : token + 1], self._uses([token]))[0]
                    assert torch.equal(alone.setdefault(token, one_O), one_O)
                some = [luck.sample(tokens, luck.randrange(1, len(tokens) + 1)) for _ in range(3)]
                for together in (tokens, *some):
                    found_TO = module(self.x_TI[together], self._uses(together))
                    for at, token in enumerate(together):
                        assert torch.equal(found_TO[at], alone[token])

    def _place(self, module: CompiledModule) -> None:
        for slot, held in self.held.items():
            module.place(slot, held.pair, held.deltas)

    def _uses(self, tokens: Sequence[int]) -> Uses:
        """The uses of these tokens, which lie one after the other."""
        return sorted(
            (slot, at, scale)
            for at, token in enumerate(tokens)
            for slot, scale in self.wishes[token]
        )

    def _expected(self, token: int) -> tuple[Tensor, float]:
        """The answer, and the sum of the sizes of its parts."""
        x_1I = self.x_TI[token : token + 1]
        base_1O = self.linear(x_1I)
        parts = [base_1O]
        for slot, scale in self.wishes[token]:
            if slot in self.held:
                at = torch.tensor([[scale]])
                parts += [delta(x_1I, base_1O, at) for delta in self.held[slot].exact]
        return torch.stack(parts).sum(0)[0], sum(float(part.norm()) for part in parts)


def check_a_slot_forgets(built: ctypes.CDLL, makes: Sequence[Make]) -> None:
    """One slot has each adapter in turn: the answers are those of a new slot."""
    dice, luck = torch.Generator().manual_seed(7), random.Random(7)
    linear = linear_of(64, 48, bias=True, dice=dice)
    x_TI = torch.randn(3, 64, generator=dice)
    held = [make(linear, dice, luck) for make in makes]
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
