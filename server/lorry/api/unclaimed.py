"""`/unclaimed`: stored files without an adapter, and their recovery."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lorry.api.adapter_schema import AdapterView, RecoverBody, UnclaimedList
from lorry.api.adapters import Adapters
from lorry.api.bodies import read_body
from lorry.api.docs import json_body
from lorry.api.errors import documented
from lorry_adapters.registry.registry import Registry


class Unclaimed:
    def __init__(self, *, registry: Registry, adapters: Adapters) -> None:
        self._registry = registry
        self._adapters = adapters

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/unclaimed", tags=["adapters"])
        router.add_api_route(
            "",
            self.listing,
            methods=["GET"],
            summary="List stored files that no adapter has",
            responses={200: {"model": UnclaimedList}, **documented(503)},
            response_model=None,
        )
        record = {"model": AdapterView, "description": "The record; `ETag` is its digest"}
        router.add_api_route(
            "",
            self.recover,
            methods=["POST"],
            summary="Make adapters of stored files",
            responses={201: record, **documented(400, 404, 409, 413, 415, 422, 503, 507)},
            openapi_extra=json_body(RecoverBody, {"digest": "sha256:" + "0" * 64, "name": "legal"}),
            response_model=None,
            status_code=201,
        )
        return router

    async def listing(self) -> Response:
        """Files whose records were lost, in the home folder and in the store, and how long they
        are kept."""
        contents = await asyncio.to_thread(self._registry.unclaimed, in_store=True)
        return JSONResponse(
            {
                "unclaimed": [
                    {
                        "digest": content.digest,
                        "bytes": content.bytes,
                        "since": content.since and content.since.isoformat(),
                        "kept_until": content.until and content.until.isoformat(),
                    }
                    for content in contents
                ]
            }
        )

    async def recover(self, request: Request) -> Response:
        """Turn stored files into an adapter again, under an unused name."""
        body = await read_body(request, RecoverBody)
        record = await asyncio.to_thread(self._registry.recover, body.digest, body.name)
        return await self._adapters.answers.one(record, 201)
