"""A block's key, part by part: other contents are never a hit, and without the part they would be.

The toy model's cells say what they were computed of: a row that reads a block which it would have
computed otherwise fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from lorry.core import Caching, Request
from lorry.engine import block_keys
from support.engine_fakes import PROMPT, answer_of, request
from support.prefixes import LONG, bench, cached, one_by_one
from support.scheduling import Bench

Ask = tuple[Sequence[int], Sequence[tuple[str, float]]]

FIRST: Ask = (LONG, [("a", 1.0)])

PARTS: dict[str, tuple[Ask, Ask]] = {
    "digest": (FIRST, (LONG, [("b", 1.0)])),
    "no adapter": (FIRST, (LONG, [])),
    "scale": (FIRST, (LONG, [("a", 0.5)])),
    "another of the sum": (FIRST, (LONG, [("a", 1.0), ("b", 1.0)])),
    "tokens": (FIRST, ([*LONG[:6], 1, *LONG[7:]], [("a", 1.0)])),
    "tokens before": (FIRST, ([1, *LONG[1:]], [("a", 1.0)])),
    "virtual tokens": (([9, *LONG], [(PROMPT, 1.0)]), ([1, 2, 3, 9, *LONG], [])),
}


def changes_without(*parts: int) -> Callable[..., tuple[object, ...]]:
    """`changes_in` that says nothing of some parts."""
    right = block_keys.changes_in

    def broken(*given: object) -> tuple[object, ...]:
        changes = right(*given)  # type: ignore[arg-type]
        return tuple(tuple(v for at, v in enumerate(one) if at not in parts) for one in changes)

    return broken


BROKEN: dict[str, tuple[str, Callable[..., object]]] = {
    "digest": ("changes_in", changes_without(0)),
    "no adapter": ("changes_in", lambda *given: ()),
    "scale": ("changes_in", changes_without(1)),
    "another of the sum": ("changes_in", lambda *g, right=block_keys.changes_in: right(*g)[:1]),
    "tokens": ("next_key", lambda k, t, c, right=block_keys.next_key: right(k, [0] * len(t), c)),
    "tokens before": ("next_key", lambda k, t, c, right=block_keys.next_key: right(b"", t, c)),
    "virtual tokens": (
        "next_key",
        # As if -1 were any token, and the adapter said nothing.
        lambda k, t, c, right=block_keys.next_key: right(
            k, [0 if one in (-1, 1, 2, 3) else one for one in t], ()
        ),
    ),
}


def both(part: str) -> Bench:
    made = bench()
    for name, (prompt, adapters) in zip(("first", "second"), PARTS[part], strict=True):
        one_by_one(made, request(name, prompt, adapters=adapters))
        # So that its path is known from the start.
        one_by_one(made, request(f"{name} again", prompt, adapters=adapters))
    return made


@pytest.mark.parametrize("part", PARTS)
def test_other_contents_are_never_a_hit(part: str) -> None:
    made = both(part)
    for name, (prompt, adapters) in zip(("first", "second"), PARTS[part], strict=True):
        expected = answer_of(request(name, prompt, adapters=adapters))
        assert made.answer(name) == made.answer(f"{name} again") == expected
        assert (cached(made, f"{name} again") or 0) > 0


@pytest.mark.parametrize("part", BROKEN)
def test_without_that_part_it_would_be(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the toy model does see it, and the test above tests the key."""
    name, broken = BROKEN[part]
    monkeypatch.setattr(block_keys, name, broken)
    with pytest.raises(AssertionError, match=r"computed otherwise|another's tokens"):
        both(part)


def starting(name: str, start: int) -> Request:
    asked = request(name, LONG, adapters=[("a", 1.0)])
    return replace(asked, adapters=(replace(asked.adapters[0], start=start),))


@pytest.mark.parametrize("start", [1, 2, 6, 11])
def test_another_start_of_an_adapter_is_another_block(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench()
    one_by_one(made, request("base", LONG), starting("first", 3))
    one_by_one(made, starting("second", start), starting("second again", start))
    assert cached(made, "second") == start
    assert cached(made, "second again") == 12
    monkeypatch.setattr(block_keys, "changes_in", changes_without(2))
    made = bench()
    with pytest.raises(AssertionError, match="computed otherwise"):
        one_by_one(made, starting("first", 0), *(starting(f"{n}", n) for n in (1, start)))


LORA, OTHER = ("a", 1.0, 0), ("b", 1.0, 0)


@pytest.mark.parametrize(
    ("tokens", "changes", "equal"),
    [
        ((1, 2, 3, 4), (), 4),
        ((1, 2, 3), (), 3),
        ((1, 2, 3, 4, 5), (), 4),
        ((1, 2, 9, 4), (), 2),
        ((9, 2, 3, 4), (), 0),
        ((1, 2, 3, 4), (LORA,), 0),
        ((1, 2, 3, 4), (("a", 1.0, 3),), 3),
        ((1, 2, 3), (("a", 1.0, 3),), 3),
        ((1, 2, 3, 4), (("a", 1.0, 3), ("b", 1.0, 2)), 2),
    ],
)
def test_tokens_that_depend_on_the_same(
    tokens: tuple[int, ...], changes: tuple[block_keys.Change, ...], equal: int
) -> None:
    mine, other = (
        block_keys.BlockContent(b"", ids, used)
        for ids, used in (((1, 2, 3, 4), ()), (tokens, changes))
    )
    assert mine.equal_tokens(other) == other.equal_tokens(mine) == equal


@pytest.mark.parametrize(
    ("mine", "theirs", "equal"),
    [
        ((LORA,), (LORA,), 2),
        ((LORA, OTHER), (OTHER, LORA), 0),
        ((LORA,), (("a", 0.5, 0),), 0),
        ((LORA, ("b", 1.0, 1)), (LORA,), 1),
        ((("a", 1.0, 0),), (("a", 1.0, 1),), 0),
    ],
)
def test_they_depend_on_adapters_in_their_order(
    mine: tuple[block_keys.Change, ...], theirs: tuple[block_keys.Change, ...], equal: int
) -> None:
    one, other = (block_keys.BlockContent(b"", (1, 2), changes) for changes in (mine, theirs))
    assert one.equal_tokens(other) == other.equal_tokens(one) == equal


@pytest.mark.parametrize("what", ["salt", "path", "caller"])
def test_tenants_and_paths_share_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy model cannot know them: what counts is that nothing is found."""
    paths = ["compiled", "general"] if what == "path" else ["compiled"] * 2

    def found() -> int | None:
        made = Bench(path_of=lambda *_: paths[len(made.events) > 0], per_caller=what == "caller")
        one_by_one(made, request("first", LONG, 1, caller="x", caching=Caching(salt="x")))
        other = "x" if what != "salt" else "y"
        caller = "x" if what != "caller" else "y"
        again = request("second", LONG, 1, caller=caller, caching=Caching(salt=other))
        one_by_one(made, again)
        return cached(made, "second")

    assert found() == 0
    right, at = block_keys.first_key, ["path", "salt", "caller"].index(what)
    monkeypatch.setattr(
        block_keys, "first_key", lambda *g: right(*("" if i == at else v for i, v in enumerate(g)))
    )
    assert found() == 12


def test_callers_share_unless_they_must_not() -> None:
    for per_caller, expected in ((False, 12), (True, 0)):
        made = bench(per_caller=per_caller)
        one_by_one(made, request("x", LONG, caller="x"), request("y", LONG, caller="y"))
        assert cached(made, "y") == expected
