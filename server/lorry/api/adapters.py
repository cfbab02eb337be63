"""`/adapters`: upload, list, change, remove and download."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response, StreamingResponse

from lorry.api import docs, name_path
from lorry.api.adapter_answers import AdapterAnswers
from lorry.api.adapter_schema import (
    AdapterList,
    AdapterView,
    FetchingView,
    PatchBody,
    SourceBody,
    UploadForm,
    VersionForm,
    meanings_of,
    weights_of,
)
from lorry.api.adapter_state import FIELDS, State, state_of
from lorry.api.bodies import drop_unread, media_type, read_body
from lorry.api.docs import json_body
from lorry.api.errors import UnsupportedMediaType, documented
from lorry.api.fetches import Fetch, Fetches, FetchState
from lorry.api.residencies import Residencies
from lorry.api.uploads import Form, raise_problems, read_form
from lorry.api.voices import Voices
from lorry.fetch.fetcher import Fetcher
from lorry.fetch.source_text import BucketSource, HttpsSource, source_of
from lorry.metrics import Metrics
from lorry_adapters.errors import AdapterError, UnknownAdapter
from lorry_adapters.lora import room
from lorry_adapters.registry.archive import Upload
from lorry_adapters.registry.names import check_name
from lorry_adapters.registry.record import AdapterRecord
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.version_rules import seen_as

_AT_A_TIME = 2
"""Uploads verified at once: each takes a processor, and memory beyond its files. As many are
fetched at once."""


def _form_of(kind: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"multipart/form-data": {"schema": schema}}


class Adapters:
    def __init__(
        self,
        *,
        registry: Registry,
        metrics: Metrics,
        residencies: Residencies,
        voices: Voices,
        max_upload: int,
        fetcher: Fetcher,
        hub_endpoint: str,
        watched: Callable[[], Mapping[str, str]] | None,
        base_parameters: int,
    ) -> None:
        self._fetcher = fetcher
        self._hub_endpoint = hub_endpoint
        self._fetches = Fetches()
        self._fetching = asyncio.Semaphore(_AT_A_TIME)
        self._registry = registry
        self._metrics = metrics
        self.answers = AdapterAnswers(
            registry, residencies, voices, self._fetches, watched, base_parameters
        )
        self._max_upload = max_upload
        self._verifying = asyncio.Semaphore(_AT_A_TIME)

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/adapters", tags=["adapters"])
        tag = {"headers": docs.headers("ETag")}
        record = {**tag, "model": AdapterView, "description": "The record; `ETag` is its digest"}
        again = {**tag, "model": AdapterView, "description": "It was there already"}
        gone = {"description": "Gone for new requests; running ones finish"}
        tar = {
            "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
            "headers": docs.headers("Content-Disposition"),
            "description": "The tar",
        }
        form = _form_of(UploadForm)
        upload = {"requestBody": {"required": True, "content": _form_of(VersionForm)}}
        either = json_body(SourceBody, {"name": "legal", "source": "/srv/adapters/legal"})
        either["requestBody"]["content"].update(form)
        checked = (400, 409, 413, 415, 422, 503, 507)

        def add(
            method: str,
            path: str,
            route: Callable[..., Awaitable[Response]],
            summary: str,
            ok: dict[int | str, dict[str, Any]],
            failures: tuple[int, ...] = (),
            body: dict[str, Any] | None = None,
        ) -> None:
            router.add_api_route(
                path,
                route,
                methods=[method],
                summary=summary,
                responses={**ok, **documented(*failures)},
                openapi_extra=body,
                response_model=None,
                status_code=int(next(iter(ok))),
            )

        add("GET", "", self.listing, "List all adapters", {200: {"model": AdapterList}})
        both: dict[int | str, dict[str, Any]] = {201: record, 200: again}
        add("POST", "", self.create, "Register an adapter", both, (*checked, 502), either)
        one = f"/{{name:{name_path.CONVERTOR}}}"
        # Before the next one, which would take `content` for a part of the name.
        files = one + "/content"
        title = "Download an adapter's files as a tar"
        add("GET", files, self.content, title, {200: tar}, (404, 422, 503))
        coming = {"model": FetchingView, "description": "It is being fetched"}
        shown: dict[int | str, dict[str, Any]] = {200: record, 202: coming}
        add("GET", one, self.show, "Show an adapter", shown, (404, 422, 503))
        add(
            "PUT",
            one,
            self.replace,
            "Add a new version of an adapter",
            {200: record},
            (404, 412, *checked),
            upload,
        )
        add(
            "PATCH",
            one,
            self.change,
            "Change an adapter's state or current version",
            {200: record},
            (400, 404, 409, 412, 413, 415, 422, 503, 507),
            json_body(PatchBody, {"scale": 0.5}),
        )
        add(
            "DELETE",
            one,
            self.remove,
            "Remove an adapter or one version of it",
            {204: gone},
            (404, 409, 422, 503, 507),
        )
        return router

    async def listing(self) -> Response:
        """Every adapter's record, disabled ones too."""
        return self.answers.all()

    async def show(
        self,
        name: str,
        inspect: Annotated[
            bool, Query(description="Add `inspection`: what the current version's files tell")
        ] = False,
    ) -> Response:
        """An adapter's record with all its versions; `ETag` is the digest of the current one."""
        try:
            record = self._registry.get(name)
            return await self.answers.one(record, name=name, inspect=inspect)
        except UnknownAdapter as error:
            if not self._registry.policy.sees(name):
                raise
            fetch = self._fetches.view(name)
            if fetch is not None:
                return JSONResponse({"name": name, "fetch": fetch}, status_code=202)
            self._fetches.explain(error, name)
            raise

    async def create(self, request: Request) -> Response:
        """Takes an archive of a PEFT folder, its two files, or JSON with a source to read them
        from. The answer comes when the adapter is verified; meanwhile `GET` shows the progress,
        and `DELETE` cancels."""
        if media_type(request) == "application/json":
            return await self._create_from_source(await read_body(request, SourceBody))
        async with self._form(request) as form:
            name = form.fields.pop("name", None)
            if not name:
                form.problems.insert(0, "name is required")
            state = state_of(form)
            upload = form.upload()
            raise_problems(form)
            assert name is not None and upload is not None
            record, new = await self._add(name, lambda: upload, state)
        return await self.answers.one(record, 201 if new else 200)

    async def replace(self, request: Request, name: str) -> Response:
        """Add a version, which is used from now on."""
        try:
            if_match = self._if_match(request, self._registry.get(name))
        except AdapterError:
            await drop_unread(request)
            raise
        if media_type(request) == "application/json":
            raise UnsupportedMediaType(
                "send a new version as a form with Content-Type: multipart/form-data"
            )
        async with self._form(request) as form:
            if form.fields.pop("name", name) != name:
                form.problems.append(f"name must be {name!r}, as in the path, or left out")
            for field in form.fields:
                form.problems.append(
                    f"{field[:80]} does not belong to a version; change it with PATCH"
                    if field in FIELDS
                    else f"unknown field {field[:80]}"
                )
            upload = form.upload()
            raise_problems(form)
            assert upload is not None
            record = await self._put(name, upload, if_match)
        return await self.answers.one(record)

    async def change(self, request: Request, name: str) -> Response:
        """The given fields change at once, together; running requests keep what they began with.
        For an alias: `version` or `split`, what it means."""
        body = await read_body(request, PatchBody)
        if_match = self._if_match(request, self._registry.get(name))
        record = await asyncio.to_thread(
            self._registry.patch,
            name,
            enabled=body.enabled,
            scale=body.scale,
            pinned=body.pinned,
            description=body.description,
            version=body.version,
            split=weights_of(body.split),
            aliases=meanings_of(body.aliases),
            keep_versions=body.keep_versions,
            keep_days=body.keep_days,
            if_match=if_match,
        )
        return await self.answers.one(seen_as(record, name), name=name)

    async def remove(
        self,
        name: str,
        version: int | None = None,
        fetch: Annotated[
            bool, Query(description="Only cancel its fetch; the adapter stays as it is")
        ] = False,
    ) -> Response:
        """It is gone for new requests at once; running ones finish. A fetch is cancelled. An alias
        is removed alone."""
        mine = version is None and self._registry.policy.sees(name)
        cancelled = mine and await self._fetches.cancel(name)
        if fetch:
            if not cancelled:
                raise UnknownAdapter(f"no fetch of adapter {name[:128]!r} can be cancelled")
            return Response(status_code=204)
        try:
            await self.drop(name, version)
        except UnknownAdapter:
            if not cancelled:
                raise
        return Response(status_code=204)

    async def drop(self, name: str, version: int | None = None) -> None:
        """Remove an adapter or a version, and its metrics. Raises UnknownAdapter."""
        await asyncio.to_thread(self._registry.remove, name, version=version)
        self._metrics.forget(name, version)

    async def content(self, name: str, version: int | None = None) -> Response:
        """The files as they were uploaded, of the current or another version."""
        tar = await asyncio.to_thread(self._registry.content, name, version)
        shown = re.sub("[/:@]", "-", name if version is None else f"{name}-{version}")

        async def chunks() -> AsyncGenerator[bytes]:
            try:
                while chunk := await asyncio.to_thread(next, tar, b""):
                    yield chunk
            finally:
                tar.close()

        headers = {
            "Content-Length": str(tar.size),
            "Content-Disposition": f'attachment; filename="{shown}.tar"',
        }
        return StreamingResponse(chunks(), media_type="application/x-tar", headers=headers)

    async def _put(self, name: str, upload: Upload, if_match: str | None) -> AdapterRecord:
        async with self._verifying:
            return await asyncio.to_thread(self._registry.put, name, upload, if_match=if_match)

    async def _create_from_source(self, body: SourceBody) -> Response:
        state = State(
            scale=body.scale,
            enabled=body.enabled,
            pinned=body.pinned,
            description=body.description,
            replace=bool(body.replace),
        )
        record, new = await self.add_source(body.name, body.source, state)
        return await self.answers.one(record, 201 if new else 200)

    async def add_source(self, name: str, text: str, state: State) -> tuple[AdapterRecord, bool]:
        """Add an adapter from a folder under an allowed root, or fetch it.

        Raises InvalidRequest, UnsupportedParameter, ForbiddenSource, SourceFailed, AdapterConflict,
        and what `Registry.add` raises.
        """
        source = source_of(text, self._hub_endpoint)
        if not isinstance(source, HttpsSource | BucketSource):
            return await self._add(name, lambda: self._registry.upload_from(source), state)
        # Before anything is said of the name: whether it is being fetched is its owners' matter.
        self._registry.policy.check_name(check_name(name, frozenset()))
        self._fetcher.check(source)

        async def work(fetch: Fetch) -> tuple[AdapterRecord, bool]:
            async with self._fetching, self._staging() as folder:
                upload = await self._fetcher.fetch(source, folder, fetch.progress)
                fetch.state = FetchState.VERIFYING
                try:
                    return await self._add(name, lambda: upload, state)
                except AdapterError as error:
                    if error.param == "file":
                        error.param = "source"
                    raise

        return await self._fetches.run(name, source.shown, work)

    @asynccontextmanager
    async def _staging(self) -> AsyncGenerator[Path]:
        """Yield a folder for incoming files, which is deleted after the block."""
        staging = self._registry.staging()
        folder = await asyncio.to_thread(staging.__enter__)
        try:
            yield folder
        except OSError as error:
            raise self._registry.storage.unusable(error) from error
        finally:
            await asyncio.to_thread(staging.__exit__, None, None, None)

    async def _add(
        self, name: str, upload: Callable[[], Upload], state: State
    ) -> tuple[AdapterRecord, bool]:
        """Run `Registry.add` when it is this upload's turn. `upload` may read the disk."""

        def add() -> tuple[AdapterRecord, bool]:
            return self._registry.add(
                name,
                upload(),
                scale=state.scale,
                enabled=state.enabled,
                pinned=state.pinned,
                description=state.description,
                replace=state.replace,
            )

        async with self._verifying:
            return await asyncio.to_thread(add)

    @asynccontextmanager
    async def _form(self, request: Request) -> AsyncGenerator[Form]:
        """Yield the request's form. Its files are in a folder that is deleted after the block."""
        entered = False
        try:
            async with self._staging() as folder:
                entered = True
                with room.named("receiving the upload"):
                    form = await read_form(request, folder, self._max_upload)
                yield form
        except AdapterError:
            if not entered:
                # Otherwise a client that is still sending would see a broken connection, not the
                # reason.
                await drop_unread(request)
            raise

    def _if_match(self, request: Request, record: AdapterRecord) -> str | None:
        """Return the digest that If-Match requires, or None if any will do."""
        header = request.headers.get("if-match", "").strip()
        if header in ("", "*"):
            return None
        tags = [tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")]
        return record.current.digest if record.current.digest in tags else tags[0]
