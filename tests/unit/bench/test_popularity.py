from __future__ import annotations

import random
from collections import Counter

import pytest

from lorry.bench.popularity import Popularity, parse


def counts(text: str, adapters: int = 16, count: int = 40_000) -> Counter[int]:
    return Counter(parse(text).draw(count, adapters, random.Random(1)))


def test_identical_is_one_and_distinct_takes_turns() -> None:
    assert set(counts("identical")) == {0}
    assert parse("distinct").draw(5, 3, random.Random(1)) == [0, 1, 2, 0, 1]


def test_uniform_favours_none() -> None:
    found = counts("uniform")
    assert len(found) == 16
    assert max(found.values()) < 1.15 * min(found.values())


def test_zipf_falls_as_its_exponent_says() -> None:
    found = counts("zipf:1.5")
    assert found[0] / found[1] == pytest.approx(2**1.5, rel=0.1)
    assert found[0] / found[3] == pytest.approx(4**1.5, rel=0.15)


def test_power_of_one_is_uniform_and_less_is_skewed() -> None:
    uniform, skewed = counts("power:1"), counts("power:0.3")
    assert max(uniform.values()) < 1.15 * min(uniform.values())
    # P(x < 1/16) = (1/16) ^ 0.3
    assert skewed[0] / 40_000 == pytest.approx((1 / 16) ** 0.3, rel=0.05)


@pytest.mark.parametrize("text", ["identical", "distinct", "uniform", "zipf:1.5", "power:0.1"])
def test_every_choice_exists(text: str) -> None:
    for adapters in (1, 2, 64):
        assert set(counts(text, adapters, 500)) <= set(range(adapters))


def test_a_name_alone_has_its_usual_exponent() -> None:
    assert parse("zipf") == Popularity("zipf", 1.5)
    assert str(parse("zipf:2")) == "zipf:2"
    assert str(parse("uniform")) == "uniform"


@pytest.mark.parametrize("text", ["", "often", "zipf:-1", "zipf:much", "uniform:2", "zipf:nan"])
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"give|takes"):
        parse(text)
