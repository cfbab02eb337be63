"""The adapter spec: what it means, and every way to get it wrong."""

from __future__ import annotations

import math

import pytest

from lorry.api.selection import choices_of, one_of
from lorry.errors import InvalidRequest
from lorry_adapters.errors import InvalidScale, InvalidSelection
from lorry_adapters.registry.record import AdapterChoice


@pytest.mark.parametrize(
    ("spec", "choices"),
    [
        (None, ()),
        ([], ()),
        ("legal", (AdapterChoice("legal"),)),
        ("legal@3", (AdapterChoice("legal", 3),)),
        ({"name": "legal"}, (AdapterChoice("legal"),)),
        ({"name": "legal", "scale": None}, (AdapterChoice("legal"),)),
        ({"name": "legal", "scale": 0}, (AdapterChoice("legal", None, 0.0),)),
        ({"name": "legal@2", "scale": -0.5}, (AdapterChoice("legal", 2, -0.5),)),
        ({"name": "legal", "version": 2}, (AdapterChoice("legal", 2),)),
        ({"name": "legal@2", "version": 2}, (AdapterChoice("legal", 2),)),
        (
            ["a", {"name": "b", "scale": 2}],
            (AdapterChoice("a"), AdapterChoice("b", None, 2.0)),
        ),
    ],
)
def test_spec(spec: object, choices: tuple[AdapterChoice, ...]) -> None:
    assert choices_of(spec) == choices


@pytest.mark.parametrize(
    "spec",
    [
        1,
        True,
        "",
        "@1",
        "legal@",
        "legal@-1",
        "legal@" + "9" * 40,
        {},
        {"scale": 1},
        {"name": 3},
        {"name": "legal", "weight": 1},
        {"name": "legal", "version": 0},
        {"name": "legal", "version": True},
        {"name": "legal", "version": "2"},
        {"name": "legal@2", "version": 3},
        [None],
        [["legal"]],
        [f"a{index}" for index in range(9)],
    ],
)
def test_bad_spec(spec: object) -> None:
    with pytest.raises(InvalidSelection) as caught:
        choices_of(spec)
    assert caught.value.param == "adapter"


@pytest.mark.parametrize("scale", [17, -16.5, math.nan, math.inf, "1", True, [1], 10**400])
def test_bad_scale(scale: object) -> None:
    with pytest.raises(InvalidScale) as caught:
        choices_of(["a", {"name": "b", "scale": scale}])
    assert "adapter[1].scale" in caught.value.message
    assert "-16 to 16" in caught.value.message


def test_the_alias() -> None:
    assert one_of(None, None) is None
    assert one_of("a", None) == "a"
    assert one_of(None, "a") == "a"
    assert one_of("a", {"name": "a"}) == "a"
    with pytest.raises(InvalidRequest):
        one_of("a", "b")
    with pytest.raises(InvalidRequest):
        one_of("a", {"name": "a", "scale": 0.5})
