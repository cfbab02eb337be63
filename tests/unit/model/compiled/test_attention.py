"""The compiled step's attention against the plain formulas, and against itself in other company."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch

from support.compiled_attention import CompiledAttention, Options, Piece

Make = Callable[..., CompiledAttention]

EVERY_OPTION = [
    Options(cap, slopes, sinks, window)
    for cap, slopes, sinks, window in product((0.0, 2.0), (False, True), (False, True), (0, 40))
]

SHAPES = [(1, 1, 16), (3, 1, 64), (4, 4, 64), (8, 1, 128), (10, 2, 80), (7, 1, 48), (18, 2, 256)]
"""Query heads, key heads, and numbers of a head."""


@pytest.fixture
def make(built: ctypes.CDLL) -> Iterator[Make]:
    made = []

    def attention(*arguments: Any, **options: Any) -> CompiledAttention:
        made.append(CompiledAttention(built, *arguments, **options))
        return made[-1]

    yield attention
    for one in made:
        one.close()


def close(attention: CompiledAttention, pieces: list[Piece], tolerance: float = 2e-6) -> bool:
    wanted = [
        attention.reference(piece.row, piece.start + token)
        for piece in pieces
        for token in range(piece.count)
    ]
    return torch.allclose(
        attention(pieces).double(), torch.stack(wanted), atol=tolerance, rtol=10 * tolerance
    )


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
def test_every_option_is_what_its_formula_says(options: Options, make: Make) -> None:
    attention = make(options, heads=6, kv_heads=2)
    assert close(attention, [Piece(0, 0, 30), Piece(1, 170, 50), Piece(2, 299)])


@pytest.mark.parametrize("heads, kv_heads, size", SHAPES)
def test_any_shape_of_heads(heads: int, kv_heads: int, size: int, make: Make) -> None:
    attention = make(heads=heads, kv_heads=kv_heads, size=size)
    assert close(attention, [Piece(0, 250, 40), Piece(1, 64, 3), Piece(2, 130)])


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
def test_the_options_differ(options: Options, make: Make) -> None:
    """Or comparing each with its formula shows nothing."""
    if options == Options():
        return
    answers = [make(one)([Piece(0, 280, 8)]) for one in (options, Options())]
    assert (answers[0] - answers[1]).abs().max() > 0.01


def test_large_scores_do_not_overflow(make: Make) -> None:
    for options in (Options(), Options(cap=30.0, sinks=True)):
        attention = make(options, loud=100.0)
        # Scores of hundreds, of which a float knows the fifth digit after the point.
        assert close(attention, [Piece(0, 200, 20), Piece(1, 299)], 1e-3)


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


@pytest.mark.parametrize("window", [0, 3, 64, 100])
def test_the_numbers_of_other_rows_are_not_read(window: int, make: Make) -> None:
    """They lie in the working memory still: a window that begins behind a tile read them once."""
    clean, spoiled = (make(Options(window=window), heads=6, kv_heads=2) for _ in range(2))
    spoiled.q_RLQD[2] = torch.nan
    for start in range(0, 294, 7):
        spoiled([Piece(2, 100, 96)])
        piece = Piece(0, start, 7)
        assert spoiled([piece]).equal(clean([piece])), start


def test_any_number_of_threads_gives_the_same_bits(make: Make) -> None:
    pieces = [Piece(0, 170, 60), Piece(1, 5), Piece(2, 299)]
    answers = [make(heads=6, kv_heads=2, num_threads=count)(pieces) for count in (1, 2, 3, 7, 32)]
    assert all(answer.equal(answers[0]) for answer in answers)


def test_what_is_no_number_stays_none_and_with_those_who_see_it(make: Make) -> None:
    attention = make(Options(window=100))
    before = attention([Piece(0, 100, 90)])
    attention.k_RLHD[0, 150, 0, 5] = torch.nan
    attention.v_RLHD[0, 120, 0, 9] = torch.inf
    attention.v_RLHD[0, 60, 0, 9] = -torch.inf
    after = attention([Piece(0, 100, 90)])
    assert after[50:].isnan().all()
    assert after[:50, :, :9].equal(before[:50, :, :9])
    assert (after[:20, :, 9] == -torch.inf).all() and after[20:50, :, 9].isnan().all()


@pytest.mark.parametrize("options", [Options(), Options(2.0, True, True, 700)], ids=str)
def test_long_contexts_are_split_and_folded_with_the_same_bits(
    options: Options, make: Make
) -> None:
    """Parts of 512 keys: with threads to spare, each is a unit of its own."""
    pieces = [Piece(0, 1299), Piece(1, 1100), Piece(2, 511)]
    answers = []
    for count in (1, 2, 8):
        attention = make(options, context=1300, num_threads=count)
        assert close(attention, pieces)
        answers.append(attention(pieces))
        together = attention([Piece(1, 1010, 96)])
        assert together[90].equal(answers[0][1])
        assert attention([pieces[0]]).equal(answers[0][:1])
    assert all(answer.equal(answers[0]) for answer in answers)
