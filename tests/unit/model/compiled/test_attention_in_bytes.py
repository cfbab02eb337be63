"""The compiled step's attention over a cache in bytes: against the formulas that it states, against
plain attention, and against itself in other company and on other instruction sets."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch

from lorry.model.compiled import library
from support.compiled import compiled
from support.compiled_attention import CompiledAttention, Options, Piece

Make = Callable[..., CompiledAttention]

EVERY_OPTION = [
    Options(cap, slopes, sinks, window)
    for cap, slopes, sinks, window in product((0.0, 2.0), (False, True), (False, True), (0, 40))
]

SHAPES = [(1, 1, 16), (3, 1, 64), (4, 4, 64), (8, 1, 128), (10, 2, 80), (7, 1, 48), (18, 2, 256)]
"""Query heads, key heads, and numbers of a head."""

PIECES = [Piece(0, 0, 30), Piece(1, 170, 50), Piece(2, 299), Piece(2, 100, 2)]


@pytest.fixture
def make(built: ctypes.CDLL) -> Iterator[Make]:
    made = []

    def attention(*arguments: Any, **options: Any) -> CompiledAttention:
        made.append(CompiledAttention(built, *arguments, in_bytes=True, **options))
        return made[-1]

    yield attention
    for one in made:
        one.close()


def check(attention: CompiledAttention, pieces: list[Piece], tolerance: float = 2e-5) -> None:
    """As its own formulas say, and near those without rounding."""
    tokens = [(piece.row, piece.start + at) for piece in pieces for at in range(piece.count)]
    found = attention(pieces).double()
    own = torch.stack([attention.reference_in_bytes(*token) for token in tokens])
    plain = torch.stack([attention.reference(*token) for token in tokens])
    # A number between two steps may be rounded to either: one step of one key.
    wrong = (found - own).abs()
    assert wrong.mean() < tolerance
    assert wrong.max() < 0.03
    assert (found - plain).abs().mean() < 0.02


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
def test_every_option_is_what_its_formula_says(options: Options, make: Make) -> None:
    check(make(options, heads=6, kv_heads=2), PIECES[:3])


@pytest.mark.parametrize("heads, kv_heads, size", SHAPES)
def test_any_shape_of_heads(heads: int, kv_heads: int, size: int, make: Make) -> None:
    attention = make(heads=heads, kv_heads=kv_heads, size=size)
    check(attention, [Piece(0, 250, 40), Piece(1, 64, 3), Piece(2, 130)])


def test_a_token_alone_and_among_others_has_the_same_bits(make: Make) -> None:
    windows = (Options(window=64), Options(window=100), Options(window=3))
    for options in (Options(), Options(2.0, True, True, 40), *windows):
        attention = make(options, heads=6, kv_heads=2)
        alone = torch.cat([attention([Piece(0, at)]) for at in range(300)])
        for chunk in (2, 3, 7, 50, 96):
            cuts = [Piece(0, at, min(chunk, 300 - at)) for at in range(0, 300, chunk)]
            assert torch.cat([attention([cut]) for cut in cuts]).equal(alone), (options, chunk)
        others = [Piece(1, 64, 17), Piece(0, 150, 40), Piece(2, 299)]
        assert attention(others)[17:57].equal(alone[150:190]), options


@pytest.mark.parametrize("heads, kv_heads, size", SHAPES)
def test_every_instruction_set_has_the_same_bits(
    heads: int, kv_heads: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    answers = []
    folder = tmp_path_factory.mktemp("built")
    for instructions in library.instructions():
        for options in (Options(), Options(2.0, True, True, 40)):
            attention = CompiledAttention(
                compiled(instructions, folder),
                options,
                heads=heads,
                kv_heads=kv_heads,
                size=size,
                in_bytes=True,
            )
            answers.append(attention([Piece(0, 230, 40), Piece(1, 64, 3), Piece(2, 130)]))
            attention.close()
    for at in range(2):
        assert all(answer.equal(answers[at]) for answer in answers[at::2])


@pytest.mark.parametrize("window", [0, 3, 64, 100])
def test_the_numbers_of_other_rows_are_not_read(window: int, make: Make) -> None:
    clean, spoiled = (make(Options(window=window), heads=6, kv_heads=2) for _ in range(2))
    spoiled.q_RLQD[2] = torch.nan
    for start in range(0, 294, 7):
        spoiled([Piece(2, 100, 96)])
        piece = Piece(0, start, 7)
        assert spoiled([piece]).equal(clean([piece])), start


def test_what_is_no_number_stays_with_those_who_see_it(make: Make) -> None:
    """A head with such a number has no scale, and so is none as a whole."""
    attention = make(Options(window=100))
    before = attention([Piece(0, 100, 90)])
    attention.k_RLHD[0, 150, 0, 5] = torch.nan
    after = attention([Piece(0, 100, 90)])
    assert after[50:].isnan().all() and after[:50].equal(before[:50])
    attention.v_RLHD[0, 120, 0, 9] = torch.inf
    attention.v_RLHD[0, 60, 0, 9] = torch.nan
    after = attention([Piece(0, 100, 90)])
    assert after[20:].isnan().all()
    # The window of the token at 159 ends behind 60.
    attention.k_RLHD[0, 150, 0, 5] = attention.v_RLHD[0, 120, 0, 9] = 0
    after = attention([Piece(0, 100, 90)])
    assert after[:60].isnan().all() and after[60:].isfinite().all()


@pytest.mark.parametrize("options", [Options(), Options(2.0, True, True, 700)], ids=str)
def test_long_contexts_are_split_and_folded_with_the_same_bits(
    options: Options, make: Make
) -> None:
    pieces = [Piece(0, 1299), Piece(1, 1100), Piece(2, 511)]
    answers = []
    for count in (1, 2, 8):
        attention = make(options, context=1300, num_threads=count)
        check(attention, pieces)
        answers.append(attention(pieces))
        assert attention([Piece(1, 1010, 96)])[90].equal(answers[0][1])
        assert attention([pieces[0]]).equal(answers[0][:1])
    assert all(answer.equal(answers[0]) for answer in answers)
