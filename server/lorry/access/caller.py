"""Who makes the current request: the key that it came with, and its address.

The API sets it once per request. The code that answers the request, also in other threads, has it
from its context; what the server does of its own accord has none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from lorry.access.api_key import KeyRecord, Scope


@dataclass(frozen=True, slots=True)
class Caller:
    key: KeyRecord
    address: str = ""
    spend: Callable[[int], None] | None = None
    """Takes tokens from the key's allowance. None if it has no limit on them."""


ANYONE = KeyRecord("", "", frozenset(Scope))
"""Stands for the key of a server that asks for none."""

_CURRENT: ContextVar[Caller | None] = ContextVar("caller", default=None)


def enter(caller: Caller | None) -> None:
    """Set the caller of the current request, or that it needs none. The web server gives each its
    own context, which may be a copy of the connection's previous one."""
    _CURRENT.set(caller)


def current() -> Caller | None:
    """Return None outside a request."""
    return _CURRENT.get()


def key_id() -> str:
    """Return the id of the current request's key; empty without one."""
    who = _CURRENT.get()
    return "" if who is None else who.key.id
