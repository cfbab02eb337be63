"""`/health*`, `/info`, `/metrics`: what supervisors, people and scrapers ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from lorry.api.bodies import MAX_JSON
from lorry.api.bounds import MAX_ANSWERS, MAX_STOPS, MAX_TOP
from lorry.api.errors import UNREADY_RETRY, documented
from lorry.metrics import CONTENT_TYPE, Metrics
from lorry.settings import Settings
from lorry_adapters.registry.record import MAX_SCALE, MAX_SELECTION

Result = TypeVar("Result")


class HealthView(BaseModel):
    status: str
    reason: str | None = Field(default=None, description="Why not, and what to do")
    warning: str | None = Field(default=None, description="What may soon keep it from being ready")


class VersionView(BaseModel):
    version: str


class Health:
    def __init__(
        self,
        *,
        ready: Callable[[], bool],
        trouble: Callable[[], str | None],
        warning: Callable[[], str | None],
        info: Callable[[], Mapping[str, object]],
        metrics: Metrics,
        settings: Settings,
        max_model_len: int,
    ) -> None:
        self._ready = ready
        self._trouble = trouble
        self._warning = warning
        self._info = info
        self._metrics = metrics
        self._settings = settings
        self._max_model_len = max_model_len
        # Others' threads may all wait for a disk or work on uploads, and health is asked then.
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

        well: dict[int | str, Any] = {200: {"model": HealthView}}
        unready: dict[int | str, Any] = {
            503: {"model": HealthView, "description": "Not ready, or shutting down"}
        }
        add("/health/live", self.live, "The process answers", well)
        add("/health/ready", self.ready, "It takes requests", {**well, **unready})
        add("/health", self.ready, "As /health/ready", {**well, **unready})
        for method in ("GET", "POST"):
            add("/ping", self.ready, "As /health/ready", {**well, **unready}, method)
        add("/version", self.version, "What version it is", {200: {"model": VersionView}})
        add("/info", self.info, "The model, its memory, the limits", documented())
        add("/metrics", self.metrics, "For Prometheus", {200: {"content": {"text/plain": {}}}})
        return router

    async def live(self) -> Response:
        """200 as long as the process answers, whatever state it is in."""
        return JSONResponse({"status": "live"})

    async def ready(self) -> Response:
        """200 where requests are taken; else 503, the reason, and when to ask again."""
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
        """Of the server, as `/info` has it among much else."""
        return JSONResponse({"version": self._info()["version"]})

    async def info(self) -> Response:
        """What is served, how, in how much memory, and every limit that a request has."""
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
        info = dict(self._info())
        # The names under which TGI's clients look for some of it.
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
        return JSONResponse({**tgi, **info, "limits": limits})

    async def metrics(self) -> Response:
        """Every metric in Prometheus' text format."""
        text = await self._apart(self._metrics.render)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    def _of_the_disk(self) -> tuple[str | None, str | None]:
        """What is wrong with it, and what may soon be."""
        trouble = self._trouble()
        return trouble, None if trouble is not None else self._warning()

    async def _apart(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
