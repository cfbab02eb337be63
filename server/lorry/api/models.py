"""`/v1/models`: the base first, then the adapters, in the form of OpenAI's clients and gateways."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from lorry.api.errors import documented
from lorry.api.selection import BaseNames, not_found
from lorry_adapters.errors import UnknownAdapter
from lorry_adapters.registry.record import AdapterRecord
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.version_rules import seen_as


class ModelCard(BaseModel):
    id: str
    object: str
    created: int
    owned_by: str
    root: str
    """The content: the base's source, or an adapter's digest."""
    parent: str | None
    """The base, for an adapter."""
    max_model_len: int


class ModelList(BaseModel):
    object: str
    data: list[ModelCard]


class Models:
    def __init__(
        self,
        *,
        registry: Registry,
        base: BaseNames,
        base_source: str,
        max_model_len: int,
        started: datetime,
    ) -> None:
        self._registry = registry
        self._base = base
        self._base_source = base_source
        self._max_model_len = max_model_len
        self._started = started

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/models", tags=["openai"])
        router.add_api_route(
            "",
            self.listing,
            methods=["GET"],
            summary="List the base and the adapters",
            responses={200: {"model": ModelList}, **documented()},
            response_model=None,
        )
        router.add_api_route(
            "/{model:path}",
            self.show,
            methods=["GET"],
            summary="Show the base or an adapter",
            responses={200: {"model": ModelCard}, **documented(404)},
            response_model=None,
        )
        return router

    async def listing(self) -> Response:
        """Aliases follow their adapters. Disabled adapters are left out, as a request for one is
        refused."""
        bases = [self._card_of_base(name) for name in (self._base.first, *self._base.others)]
        adapters = [
            self._adapter(seen_as(one, name), name)
            for one in self._registry.records()
            if one.enabled
            for name in (one.name, *(alias.name for alias in one.rules.aliases))
            if self._registry.shows(one, name)
        ]
        return JSONResponse({"object": "list", "data": [*bases, *adapters]})

    async def show(self, model: str) -> Response:
        """The base, by any of its names, or an adapter, or an alias."""
        if not model:
            # The list's path with a slash at its end is redirected, like every route.
            raise HTTPException(404)
        if model in self._base:
            return JSONResponse(self._card_of_base(model))
        try:
            return JSONResponse(self._adapter(self._registry.get(model), model))
        except UnknownAdapter as error:
            raise not_found(model, self._base, error) from error

    def _card_of_base(self, name: str) -> dict[str, Any]:
        return self._card(name, self._started, self._base_source, None)

    def _adapter(self, record: AdapterRecord, name: str) -> dict[str, Any]:
        return self._card(name, record.created_at, record.current.digest, self._base.first)

    def _card(self, name: str, created: datetime, root: str, parent: str | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int(created.timestamp()),
            "owned_by": "lorry",
            "root": root,
            "parent": parent,
            "max_model_len": self._max_model_len,
        }
