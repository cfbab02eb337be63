"""A request for the engine on the HTTP side: whose it is, and its place in the queue."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

from starlette.requests import Request
from starlette.types import Scope

from lorry.api.turns import Turns
from lorry.engine.client import EngineClient
from lorry.engine.places import Place
from lorry.hostname import address_of

_KEY = "visit"


class Visit:
    """From the headers to the end of the answer. The place is taken once the body is there:
    a client that is slow to send, or never does, keeps nobody out."""

    def __init__(self, client: EngineClient, turns: Turns, scope: Scope) -> None:
        """Raises QueueFull, ShuttingDown, if it can be told already."""
        self._client = client
        self._turns = turns
        self._caller = caller_of(scope)
        self._place: Place | None = None
        client.check_room(self._caller)
        scope.setdefault("state", {})[_KEY] = self

    async def arrive(self) -> None:
        if self._place is None:
            self._place = self._client.enter(self._caller)
            # Those behind are told first whether there is a place for them.
            await self._turns.mine()

    @property
    def place(self) -> Place:
        assert self._place is not None, "the body has been read"
        return self._place

    def leave(self) -> None:
        if self._place is not None:
            self._place.leave()


async def arrived(request: Request) -> None:
    """The body has been read. Raises QueueFull, ShuttingDown, where it is for the engine."""
    visit = request.scope.get("state", {}).get(_KEY)
    if visit is not None:
        await visit.arrive()


def place_of(request: Request) -> Place:
    """Of a request for the engine whose body has been read."""
    visit: Visit = request.scope["state"][_KEY]
    return visit.place


def caller_of(scope: Scope) -> str:
    """Who shares fairly with the others: an address; of IPv6 the network that one
    subscriber has."""
    client = scope.get("client")
    address = None if client is None else address_of(client[0])
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address.packed[:8] + bytes(8), 64)))
    return "" if address is None else str(address)
