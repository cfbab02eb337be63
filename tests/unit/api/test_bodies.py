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
