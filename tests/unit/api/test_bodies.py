"""Strict JSON."""

from __future__ import annotations

import pytest

from lorry.api.bodies import parse_json
from lorry.api.errors import MalformedBody


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1} trailing',
    ],
    ids=range(12),
)
def test_refused(data: bytes) -> None:
    with pytest.raises(MalformedBody):
        parse_json(data)


def test_taken() -> None:
    assert parse_json('{"a": ["é", "\\ud83d\\ude9a", 1e3]}'.encode()) == {"a": ["é", "🚚", 1000.0]}


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}',
        b'[{"x": [{"y": 1, "y": 2}]}]',
        b'{"a": 1, "\\u0061": 2}',
        b'{"": 1, "": 2}',
    ],
)
def test_a_key_twice_in_one_object_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedBody, match="twice"):
        parse_json(data)


def test_a_key_once_in_each_of_several_objects_is_taken() -> None:
    data = b'{"a": {"a": [{"a": 1}, {"a": 1}]}, "A": 2}'
    assert parse_json(data) == {"a": {"a": [{"a": 1}, {"a": 1}]}, "A": 2}


def test_the_message_of_a_long_key_is_short() -> None:
    key = "k" * 1000
    with pytest.raises(MalformedBody) as refused:
        parse_json(f'{{"{key}": 1, "{key}": 2}}'.encode())
    assert len(str(refused.value)) < 200
