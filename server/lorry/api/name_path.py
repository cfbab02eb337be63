"""The part of a path that is an adapter's name, which may contain slashes.

`/adapters/org/name` and `/adapters/org%2Fname` are one path to the router. A path that ends in a
slash is left to the redirect, as on every route.
"""

from __future__ import annotations

from typing import Final

from starlette.convertors import Convertor, register_url_convertor

CONVERTOR: Final = "adapter"
"""`{name:adapter}` in a route."""


class _NameConvertor(Convertor[str]):
    # A path below an adapter is a route of its own, for every method.
    regex = "[^/]+(?:/(?!content$)[^/]+)*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


# Starlette knows convertors by a name in a table of its own.
register_url_convertor(CONVERTOR, _NameConvertor())
