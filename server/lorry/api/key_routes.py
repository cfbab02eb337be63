"""`/keys`: create, list, change, rotate and revoke API keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lorry.access.access_control import AccessControl
from lorry.access.api_key import NAME, KeyLimits, KeyRecord, Scope, check_pattern
from lorry.api.bodies import read_body
from lorry.api.docs import headers, json_body
from lorry.api.errors import InvalidFields, documented
from lorry.api.key_schema import (
    KeyBody,
    KeyList,
    KeyPatchBody,
    KeyView,
    NewKeyView,
    RotateBody,
)

_EXAMPLE = {"name": "legal-team", "scopes": ["generate", "upload"], "adapters": ["legal-*"]}


class KeyRoutes:
    def __init__(self, access: AccessControl) -> None:
        self._keyring = access.keyring
        self._quotas = access.quotas

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/keys", tags=["keys"])
        ok: dict[int | str, Any] = {200: {"model": KeyView}}
        new = {
            "headers": headers("Cache-Control"),
            "model": NewKeyView,
            "description": "With `key`, which is shown this once",
        }
        body = (400, 413, 415, 422, 503, 507)

        def add(
            method: str,
            path: str,
            route: Callable[..., Awaitable[Response]],
            summary: str,
            responses: Mapping[int | str, Any],
            extra: dict[str, Any] | None = None,
        ) -> None:
            router.add_api_route(
                path,
                route,
                methods=[method],
                summary=summary,
                responses=dict(responses),
                openapi_extra=extra,
                response_model=None,
                status_code=int(next(iter(responses))),
            )

        one = "/{name}"
        add("GET", "", self.listing, "List all keys", {200: {"model": KeyList}, **documented()})
        add(
            "POST",
            "",
            self.create,
            "Make a key",
            {201: new, **documented(409, *body)},
            json_body(KeyBody, _EXAMPLE),
        )
        add("GET", one, self.show, "Show a key", {**ok, **documented(404)})
        add(
            "PATCH",
            one,
            self.change,
            "Change a key's scopes, adapters or limits",
            {**ok, **documented(404, 409, *body)},
            json_body(KeyPatchBody, {"limits": {"requests_per_minute": 60}}),
        )
        gone = {"description": "Revoked: no request can use it any more"}
        add(
            "DELETE",
            one,
            self.revoke,
            "Revoke a key",
            {204: gone, **documented(404, 409, 503, 507)},
        )
        add(
            "POST",
            f"{one}/rotate",
            self.rotate,
            "Replace a key by a new one",
            {200: new, **documented(404, *body)},
            json_body(RotateBody, {"keep_old": 3600}),
        )
        return router

    async def listing(self) -> Response:
        """Every key by its name, without its text. The one of `--api-key` is not among them."""
        return JSONResponse({"keys": [_view(record) for record in self._keyring.records()]})

    async def show(self, name: str) -> Response:
        """A key by its name or id, without its text."""
        return JSONResponse(_view(self._keyring.get(name)))

    async def create(self, request: Request) -> Response:
        """The answer has the key itself, which is shown this once. The first key needs the scope
        `admin`, because from then on every request needs a key."""
        body = await read_body(request, KeyBody)
        problems = [] if NAME.fullmatch(body.name) else [_NAME]
        scopes = frozenset(map(Scope, body.scopes))
        problems += _problems(scopes, body.adapters)
        if problems:
            raise InvalidFields(problems)
        limits = KeyLimits(**body.limits.model_dump()) if body.limits is not None else KeyLimits()
        record, text = await asyncio.to_thread(
            self._keyring.create,
            body.name,
            scopes,
            body.adapters,
            limits,
            body.description or "",
        )
        return _shown_once(record, text, 201)

    async def change(self, request: Request, name: str) -> Response:
        """In force for the next request; running ones finish."""
        body = await read_body(request, KeyPatchBody)
        old = self._keyring.get(name)
        given: dict[str, Any] = {}
        if body.scopes is not None:
            given["scopes"] = frozenset(map(Scope, body.scopes))
        if "adapters" in body.model_fields_set:
            given["adapters"] = None if body.adapters is None else tuple(body.adapters)
        if body.limits is not None:
            set_now = body.limits.model_dump(include=body.limits.model_fields_set)
            given["limits"] = replace(old.limits, **set_now)
        if body.description is not None:
            given["description"] = body.description
        problems = _problems(given.get("scopes", old.scopes), given.get("adapters", old.adapters))
        if problems:
            raise InvalidFields(problems)
        return JSONResponse(_view(await asyncio.to_thread(self._keyring.change, name, **given)))

    async def rotate(self, request: Request, name: str) -> Response:
        """The same key with another text. The old text is refused at once, or after `keep_old`
        seconds."""
        body = await read_body(request, RotateBody)
        record, text = await asyncio.to_thread(self._keyring.rotate, name, body.keep_old)
        return _shown_once(record, text)

    async def revoke(self, name: str) -> Response:
        """Refused from the next request on; running ones finish."""
        record = await asyncio.to_thread(self._keyring.revoke, name)
        self._quotas.forget(record.id)
        return Response(status_code=204)


_NAME = "name: 1 to 128 letters, digits, '.', '_' or '-', the first a letter or a digit"


def _problems(scopes: frozenset[Scope], adapters: Sequence[str] | None) -> list[str]:
    problems = []
    if Scope.ADMIN in scopes and adapters is not None:
        problems.append("adapters: a key with the scope admin has every adapter; leave them out")
    for index, pattern in enumerate(adapters or ()):
        try:
            check_pattern(pattern)
        except ValueError:
            problems.append(
                f"adapters[{index}]: {pattern[:140]!r} is neither a name nor a prefix such as "
                "legal-*"
            )
    return problems


def _shown_once(record: KeyRecord, text: str, status: int = 200) -> Response:
    # No cache on the way may keep it.
    uncached = {"Cache-Control": "no-store"}
    return JSONResponse({**_view(record), "key": text}, status_code=status, headers=uncached)


def _view(record: KeyRecord) -> dict[str, Any]:
    assert record.created_at is not None and record.updated_at is not None
    return {
        "id": record.id,
        "name": record.name,
        "scopes": sorted(record.scopes),
        "adapters": None if record.adapters is None else list(record.adapters),
        "limits": asdict(record.limits),
        "description": record.description,
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
    }
