"""vLLM's two routes for adapters, so that its operators' tools work. Successes are plain text;
errors have vLLM's shape (its `type`s, the status as `code`)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, PlainTextResponse, Response

from lorry.api import docs
from lorry.api.adapter_schema import LoadBody, UnloadBody
from lorry.api.adapter_state import State
from lorry.api.adapters import Adapters
from lorry.api.bodies import read_body
from lorry.api.docs import json_body
from lorry.api.errors import count, documented, headers_of, message_of, row_of
from lorry.errors import InvalidRequest, LorryError, UnsupportedParameter
from lorry.metrics import Metrics
from lorry_adapters.errors import AdapterConflict, AdapterError, UnknownAdapter
from lorry_adapters.registry.registry import Registry

_TYPES = {
    400: "InvalidUserInput",
    403: "PermissionDeniedError",
    404: "NotFoundError",
}


class VllmErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: int | str = Field(description="The status, or a name if no route was reached.")


class VllmErrorBody(BaseModel):
    """An error in vLLM's shape."""

    error: VllmErrorDetail


class VllmLora:
    def __init__(self, *, registry: Registry, adapters: Adapters, metrics: Metrics) -> None:
        self._registry = registry
        self._adapters = adapters
        self._metrics = metrics

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1", tags=["adapters"])
        ok: dict[int | str, Any] = {200: {"content": docs.PLAIN, "description": "What was done"}}
        load = json_body(LoadBody, {"lora_name": "legal", "lora_path": "/srv/adapters/legal"})
        unload = json_body(UnloadBody, {"lora_name": "legal"})
        for path, route, body, summary in (
            ("/load_lora_adapter", self.load, load, "Register a folder, as vLLM does"),
            ("/unload_lora_adapter", self.unload, unload, "Remove an adapter, as vLLM does"),
        ):
            router.add_api_route(
                path,
                route,
                methods=["POST"],
                summary=summary,
                responses={**ok, **documented(400, 404, 413, 502, 503, 507, model=VllmErrorBody)},
                openapi_extra=body,
                response_model=None,
            )
        return router

    async def load(self, request: Request) -> Response:
        """Make an adapter of a folder below one of `--adapter-roots`, or fetch it from one of
        `--adapter-sources`."""
        try:
            body = await read_body(request, LoadBody)
            if not body.lora_name or not body.lora_path:
                raise InvalidRequest("Both 'lora_name' and 'lora_path' must be provided.")
            if body.is_3d_lora_weight:
                raise UnsupportedParameter("is_3d_lora_weight is not served; leave it out")
            known = {record.name for record in self._registry.records()}
            if body.lora_name in known and not body.load_inplace:
                raise AdapterConflict(
                    f"The lora adapter '{body.lora_name}' has already been loaded. If you want "
                    "to load the adapter in place, set 'load_inplace' to True."
                )
            state = State(replace=bool(body.load_inplace))
            await self._adapters.add_source(body.lora_name, body.lora_path, state)
        except (LorryError, AdapterError) as error:
            return self._refused(error)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        """The adapter is gone for new requests; running ones finish."""
        try:
            body = await read_body(request, UnloadBody)
            if not body.lora_name:
                raise InvalidRequest("'lora_name' must be provided.")
            await self._adapters.drop(body.lora_name)
        except UnknownAdapter as error:
            hint = "" if error.meant is None else f" Did you mean '{error.meant}'?"
            error.message = f"The lora adapter '{body.lora_name}' cannot be found.{hint}"
            return self._refused(error)
        except (LorryError, AdapterError) as error:
            return self._refused(error)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def _refused(self, error: Exception) -> Response:
        row = row_of(error)
        count(error, self._metrics)
        # vLLM uses few statuses: any wrong input is 400.
        status = 400 if row.status in (409, 415, 422) else row.status
        detail = {
            "message": message_of(error),
            "type": _TYPES.get(status, "InternalServerError"),
            "param": getattr(error, "param", None),
            "code": status,
        }
        return JSONResponse({"error": detail}, status_code=status, headers=headers_of(error))
