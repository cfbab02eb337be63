"""A request for the engine on the HTTP side: its caller, and its place in the queue."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

from starlette.requests import Request
from starlette.types import Scope

from lorry.access import caller
from lorry.access.keyring import SETTINGS_KEY
from lorry.api.turns import Turns
from lorry.engine.client import EngineClient
from lorry.engine.places import Place
from lorry.hostname import address_of

_KEY = "visit"


class Visit:
    """A request from its headers to the end of the answer. Its place is taken when the body has
    arrived, so that a slow client keeps nobody out."""

    def __init__(self, client: EngineClient, turns: Turns, scope: Scope) -> None:
        """Raises QueueFull, ShuttingDown, if that is known already."""
        self._client = client
        self._turns = turns
        self._caller = caller_of(scope)
        self._place: Place | None = None
        client.check_room(self._caller)
        scope.setdefault("state", {})[_KEY] = self

    async def arrive(self) -> None:
        if self._place is None:
            self._place = self._client.enter(self._caller, weight_of_caller())
            # Requests behind this one first learn whether there is a place for them.
            await self._turns.mine()

    @property
    def place(self) -> Place:
        assert self._place is not None, "the body has been read"
        return self._place

    def leave(self) -> None:
        if self._place is not None:
            self._place.leave()

    def keep(self) -> None:
        """The place stays taken after the answer; whoever uses it leaves it."""
        self._place = None


async def arrived(request: Request) -> None:
    """Called when the body was read. Raises QueueFull, ShuttingDown if it is for the engine."""
    visit = request.scope.get("state", {}).get(_KEY)
    if visit is not None:
        await visit.arrive()


def place_of(request: Request) -> Place:
    """Return the place of a request for the engine whose body was read."""
    visit: Visit = request.scope["state"][_KEY]
    return visit.place


def keep_place(request: Request) -> None:
    """Keep the place of a request whose sequences go on after the answer. The engine's client
    leaves it, as it does for all sequences."""
    visit: Visit = request.scope["state"][_KEY]
    visit.keep()


def weight_of_caller() -> float:
    """Return the weight of the current request's key; 1 without one."""
    who = caller.current()
    return 1.0 if who is None or who.key.limits.weight is None else who.key.limits.weight


def caller_of(scope: Scope) -> str:
    """Return the caller for fair sharing: a key, or an address, or for IPv6 the network of one
    subscriber. The settings' key is everybody's."""
    key = caller.key_id()
    if key not in ("", SETTINGS_KEY.id):
        return f"key {key}"
    client = scope.get("client")
    address = None if client is None else address_of(client[0])
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address.packed[:8] + bytes(8), 64)))
    return "" if address is None else str(address)
