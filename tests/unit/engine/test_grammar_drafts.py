"""Masks behind drafts are those that come without drafts, whatever is drafted and taken."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

import pytest

from lorry.constraint import Constraint, Grammar, GrammarKind, Rules
from lorry.engine.constraints import Constraints, compilers
from lorry.engine.restriction import Following
from lorry.errors import InvalidRequest
from support.patience import PATIENCE
from support.tokenizer import EOS, VOCAB_SIZE, build_tokenizer

TOKENIZER = build_tokenizer(add_bos=False)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 4},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
    }
)
JSON = Grammar(GrammarKind.JSON, SCHEMA, "grammar")
REGEX = Grammar(GrammarKind.REGEX, "(ab|ac)*d{3,9}", "grammar")
LETTERS = [ids[0] for ids in (TOKENIZER.encode(one, add_special_tokens=False) for one in "abcd")]
RULES = Rules(
    VOCAB_SIZE,
    least=12,
    ends=frozenset({EOS}),
    banned=((LETTERS[0], LETTERS[1], LETTERS[0]), (LETTERS[2], LETTERS[0])),
    param="bad_words",
)

Begin = Callable[[Constraint], Following]


@pytest.fixture(scope="module")
def begin() -> Iterator[Begin]:
    constraints = Constraints(
        compilers(TOKENIZER, vocab_size=VOCAB_SIZE, closed=True), wake=lambda: None
    )
    yield lambda constraint: constraints.begin(constraint).result(PATIENCE)
    constraints.close()


def mask_of(following: Following, place: int = 0) -> list[int] | None:
    words = following.allowed(place)
    return None if words is None else [int(word) for word in words]


def walk(following: Following, draw: random.Random) -> tuple[list[int], list[list[int] | None]]:
    """Random allowed tokens to the end, and the mask before each and behind the last."""
    tokens: list[int] = []
    masks = [mask_of(following)]
    while not following.finished() and len(tokens) < 60:
        words = masks[-1]
        allowed = [
            token
            for token in range(VOCAB_SIZE)
            if token != EOS
            and (
                words is None or (token // 32 < len(words) and words[token // 32] >> token % 32 & 1)
            )
        ]
        if not allowed:
            break
        tokens.append(draw.choice(allowed))
        following.advance(tokens[-1])
        masks.append(mask_of(following))
    return tokens, masks


@pytest.mark.parametrize(
    "constraint",
    [Constraint(JSON), Constraint(REGEX), Constraint(rules=RULES), Constraint(REGEX, RULES)],
    ids=["schema", "expression", "rules", "both"],
)
def test_masks_behind_drafts(constraint: Constraint, begin: Begin) -> None:
    for seed in range(12):
        draw = random.Random(seed)
        tokens, masks = walk(begin(constraint), draw)
        # Two answers share one process.
        answers = [begin(constraint), begin(constraint)]
        places = [0, 0]
        while min(places) < len(tokens):
            which = draw.randrange(2)
            answer, place = answers[which], places[which]
            if place >= len(tokens):
                continue
            right = draw.randrange(min(6, len(tokens) - place))
            wrong = [draw.randrange(VOCAB_SIZE) for _ in range(draw.randrange(3))]
            drafts = [*tokens[place : place + right], *wrong]
            if drafts:
                answer.look_ahead(drafts)
            seen = draw.randrange(right + 1)
            for index in range(seen + 1):
                assert mask_of(answer, index) == masks[place + index]
            for token in tokens[place : place + seen + 1]:
                answer.advance(token)
            places[which] += seen + 1
        for answer in answers:
            assert mask_of(answer) == masks[-1]


def test_a_draft_that_does_not_follow_has_no_mask_and_does_no_harm(begin: Begin) -> None:
    (answer, plain) = (begin(Constraint(REGEX)) for _ in range(2))
    a, _, _, d = LETTERS
    answer.look_ahead([a, d, a])
    assert mask_of(answer) == mask_of(plain)
    answer.allowed(1)
    with pytest.raises(InvalidRequest):
        answer.allowed(2)
    for following in (answer, plain):
        following.advance(a)
        following.advance(LETTERS[1])
    assert mask_of(answer) == mask_of(plain)


def test_an_answer_that_is_over_leaves_nothing_behind(begin: Begin) -> None:
    gone, plain = begin(Constraint(JSON)), begin(Constraint(JSON))
    tokens = TOKENIZER.encode('{"name": "x"', add_special_tokens=False)
    gone.look_ahead(tokens)
    del gone
    other = begin(Constraint(JSON))
    for token in tokens:
        assert mask_of(other) == mask_of(plain)
        other.advance(token)
        plain.advance(token)
