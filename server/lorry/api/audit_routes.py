"""`/audit`: who changed what."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from lorry.access.access_control import AccessControl
from lorry.access.audit import MAX_PAGE, AuditEntry
from lorry.api.errors import documented
from lorry.api.key_schema import AuditPage


class AuditRoutes:
    def __init__(self, access: AccessControl) -> None:
        self._access = access

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/audit", tags=["keys"])
        router.add_api_route(
            "",
            self.page,
            methods=["GET"],
            summary="Show who changed adapters and keys",
            responses={200: {"model": AuditPage}, **documented(422, 503)},
            response_model=None,
        )
        return router

    async def page(
        self,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        before: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
        adapter: str | None = None,
        key: str | None = None,
    ) -> Response:
        """The newest changes first. `key` is the name or id of one that made changes, or that was
        changed."""
        found = await asyncio.to_thread(
            self._access.audit.page, limit=limit, before=before, adapter=adapter, key=key
        )
        following = found[-1].id if len(found) == limit else None
        return JSONResponse({"entries": [_view(entry) for entry in found], "next": following})


def _view(entry: AuditEntry) -> dict[str, Any]:
    assert entry.at is not None
    return {
        "id": entry.id,
        "at": entry.at.isoformat(),
        "key": entry.key_name or None,
        "key_id": entry.key_id or None,
        "address": entry.address or None,
        "kind": entry.kind,
        "name": entry.name,
        "action": entry.action,
        "digest_before": entry.digest_before,
        "digest_after": entry.digest_after,
        "detail": dict(entry.detail or {}),
    }
