"""Health is answered while all other threads of the server are taken."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry
from starlette.responses import Response

from lorry.api.health import Health
from lorry.core import EngineStats
from lorry.metrics import Metrics
from lorry.settings import Settings
from support.patience import PATIENCE


def health(trouble: str | None = None, warning: str | None = None) -> Health:
    return Health(
        ready=lambda: True,
        trouble=lambda: trouble,
        warning=lambda: warning,
        about={},
        stats=EngineStats,
        metrics=Metrics(CollectorRegistry(), base_name="base"),
        settings=Settings(),
        max_model_len=128,
    )


def test_nothing_waits_for_the_threads_of_uploads() -> None:
    free = threading.Event()

    async def asked() -> list[Response]:
        one = health()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        upload = loop.run_in_executor(None, free.wait)
        try:
            async with asyncio.timeout(PATIENCE):
                return [await one.ready(), await one.live(), await one.metrics()]
        finally:
            free.set()
            await upload

    assert [answer.status_code for answer in asyncio.run(asked())] == [200, 200, 200]


def test_what_is_wrong_with_the_disk_comes_before_what_may_be() -> None:
    def body(**said: str) -> tuple[int, bytes]:
        answer = asyncio.run(health(**said).ready())
        return answer.status_code, bytes(answer.body)

    assert body(trouble="gone", warning="full") == (503, b'{"status":"not ready","reason":"gone"}')
    assert body(warning="full") == (200, b'{"status":"ready","warning":"full"}')
