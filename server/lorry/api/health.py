"""`/health*`, `/info`, `/metrics`: for supervisors, people and scrapers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from lorry.access import caller
from lorry.api import docs
from lorry.api.bodies import MAX_JSON
from lorry.api.bounds import MAX_ANSWERS, MAX_STOPS, MAX_TOP
from lorry.api.errors import UNREADY_RETRY, documented
from lorry.core import EngineStats
from lorry.metrics import CONTENT_TYPE, Metrics
from lorry.settings import Settings
from lorry_adapters.registry.record import MAX_SCALE, MAX_SELECTION

Result = TypeVar("Result")


class HealthView(BaseModel):
    status: str
    reason: str | None = Field(default=None, description="Why not, and what to do")
    warning: str | None = Field(default=None, description="What may soon make it unready")


class ServerVersion(BaseModel):
    version: str


class ServerLimits(BaseModel):
    max_model_len: int = Field(description="Tokens of the prompt and the answer together")
    max_num_seqs: int
    max_queue: int
    max_upload: int = Field(description="Bytes")
    max_body: int = Field(description="Bytes of a JSON body")
    max_lora_rank: int
    max_adapters_per_request: int
    max_scale: float
    max_answers: int
    max_top_tokens: int
    max_stop_sequences: int


class ServerCaller(BaseModel):
    key: str | None = Field(description="The key's name; null if the server asks for none")
    scopes: list[str]
    adapters: list[str] | None = Field(description="Those that the key is for; null is all")


class ServerInfo(BaseModel):
    version: str
    model_id: str
    model_source: str
    model_revision: str | None
    model_sha: str | None = Field(description="TGI's name for `model_revision`")
    architecture: str
    parameters: int = Field(description="The base's, as before any quantization")
    quantization: str
    dtype: str
    model_dtype: str = Field(description="TGI's name for `dtype`")
    kv_cache_dtype: str
    device: str
    model_device_type: str = Field(description="TGI's name for `device`")
    kernels: str
    rows: str = Field(description="packed or padded")
    prefix_cache: str = Field(description="on or off")
    speculative: str = Field(description="off, ngram or ngram+answers")
    torch: str
    max_model_len: int
    max_loras: int
    max_lora_rank: int
    memory: dict[str, int] = Field(description="Bytes, by part")
    limits: ServerLimits
    caller: ServerCaller = Field(description="Who asks")
    max_concurrent_requests: int = Field(description="TGI's name, like those below")
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int


class Health:
    def __init__(
        self,
        *,
        ready: Callable[[], bool],
        trouble: Callable[[], str | None],
        warning: Callable[[], str | None],
        about: Mapping[str, Any],
        stats: Callable[[], EngineStats],
        metrics: Metrics,
        settings: Settings,
        max_model_len: int,
    ) -> None:
        self._ready = ready
        self._trouble = trouble
        self._warning = warning
        self._about = about
        self._stats = stats
        self._metrics = metrics
        self._settings = settings
        self._max_model_len = max_model_len
        # Other threads may all wait for a disk or process uploads when health is asked for.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="lorry-health")

    def router(self) -> APIRouter:
        router = APIRouter(tags=["operations"])

        def add(
            path: str,
            route: Any,
            summary: str,
            responses: dict[int | str, Any],
            method: str = "GET",
        ) -> None:
            router.add_api_route(
                path,
                route,
                methods=[method],
                summary=summary,
                responses=responses,
                response_model=None,
            )

        open_to_all = documented(keyless=True)
        well: dict[int | str, Any] = {200: {"model": HealthView}, **open_to_all}
        unready: dict[int | str, Any] = {
            503: {"model": HealthView, "description": "Not ready, or shutting down"}
        }
        add("/health/live", self.live, "Whether the process answers", well)
        add("/health/ready", self.ready, "Whether the server takes requests", {**well, **unready})
        add("/health", self.ready, "Same as /health/ready", {**well, **unready})
        for method in ("GET", "POST"):
            add("/ping", self.ready, "Same as /health/ready", {**well, **unready}, method)
        version = {200: {"model": ServerVersion}, **open_to_all}
        add("/version", self.version, "Show the version", version)
        info = {200: {"model": ServerInfo}, **documented()}
        add("/info", self.info, "Show the model, its memory and the limits", info)
        metrics = {200: {"content": docs.PLAIN}, **documented()}
        add("/metrics", self.metrics, "Metrics for Prometheus", metrics)
        return router

    async def live(self) -> Response:
        """200 as long as the process answers, whatever its state."""
        return JSONResponse({"status": "live"})

    async def ready(self) -> Response:
        """200 if requests are accepted; otherwise 503, the reason, and when to ask again."""
        answer = {"status": "ready" if self._ready() else "not ready"}
        trouble, warning = await self._apart(self._of_the_disk)
        if trouble is not None:
            answer |= {"status": "not ready", "reason": trouble}
        elif warning is not None:
            answer["warning"] = warning
        if answer["status"] == "ready":
            return JSONResponse(answer)
        headers = {"Retry-After": str(UNREADY_RETRY)}
        return JSONResponse(answer, status_code=503, headers=headers)

    async def version(self) -> Response:
        """The server's version, which is also in `/info`."""
        return JSONResponse({"version": self._about["version"]})

    async def info(self) -> Response:
        """The base, how it is served, its memory, and all limits of requests."""
        limits = {
            "max_model_len": self._max_model_len,
            "max_num_seqs": self._settings.max_num_seqs,
            "max_queue": self._settings.max_queue,
            "max_upload": self._settings.max_upload,
            "max_body": MAX_JSON,
            "max_lora_rank": self._settings.max_lora_rank,
            "max_adapters_per_request": MAX_SELECTION,
            "max_scale": MAX_SCALE,
            "max_answers": MAX_ANSWERS,
            "max_top_tokens": MAX_TOP,
            "max_stop_sequences": MAX_STOPS,
        }
        stats = self._stats()
        adapters = {f"adapter_{part}": count for part, count in stats.adapter_bytes.items()}
        reserved = {"adapter_slots_reserved": stats.slot_bytes}
        memory = {**self._about["memory"], **adapters, **reserved}
        info = {**self._about, "memory": memory}
        # TGI's names for some of it.
        tgi = {
            "model_dtype": info.get("dtype"),
            "model_device_type": info.get("device"),
            "model_sha": info.get("model_revision"),
            "max_concurrent_requests": self._settings.max_num_seqs + self._settings.max_queue,
            "max_best_of": MAX_ANSWERS,
            "max_stop_sequences": MAX_STOPS,
            "max_input_tokens": self._max_model_len - 1,
            "max_total_tokens": self._max_model_len,
        }
        return JSONResponse({**tgi, **info, "limits": limits, "caller": _caller()})

    async def metrics(
        self,
        names: Annotated[
            list[str],
            Query(
                alias="name[]", description="Only the series of these names; several are allowed"
            ),
        ] = [],  # noqa: B006 - FastAPI copies it
    ) -> Response:
        """Every metric in Prometheus' text format."""
        text = await self._apart(lambda: self._metrics.render(names))
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    def _of_the_disk(self) -> tuple[str | None, str | None]:
        """Return the disk's problem, and what may soon become one."""
        trouble = self._trouble()
        return trouble, None if trouble is not None else self._warning()

    async def _apart(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _caller() -> dict[str, object]:
    who = caller.current()
    assert who is not None, "/info asks for a key where there are keys"
    key = who.key
    return {
        "key": key.name or None,
        "scopes": sorted(key.scopes),
        "adapters": None if key.adapters is None else list(key.adapters),
    }
