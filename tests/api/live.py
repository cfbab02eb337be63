"""A real server in this process, on a socket of its own. Nothing is mocked, and every answer is
held to the OpenAPI document."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from api.declared import Declared, declared_by
from lorry.api import heads
from lorry.bootstrap import KEEP_ALIVE, Server, assemble
from lorry.settings import Settings
from support.patience import options, wait_until

BASE = "tiny"
MAX_UPLOAD = 1 << 20
"""Bytes, on the servers that uploads are tried on."""


class Checking(httpx.Client):
    """A client that takes no answer which the document has not."""

    declared: Declared | None = None

    def send(self, *given: Any, **more: Any) -> httpx.Response:
        response = super().send(*given, **more)
        if self.declared is not None:
            problems = self.declared.problems(response)
            assert not problems, problems
        return response


@dataclass(eq=False)
class Live:
    """A running server and a client for it."""

    inside: Server | None
    """None if it is in another process."""
    url: str
    http: httpx.Client

    @property
    def server(self) -> Server:
        if self.inside is None:
            pytest.skip("looks into the server, which is in another process")
        return self.inside

    def generate(self, inputs: str = "Ahoy there", **body: Any) -> dict[str, Any]:
        """The answer of `/generate` with details; keyword `parameters` are merged."""
        parameters = {"max_new_tokens": 6, "details": True, **body.pop("parameters", {})}
        answer = self.http.post(
            "/generate", json={"inputs": inputs, "parameters": parameters, **body}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value in `/metrics`; 0 where there is none."""
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0

    def wait_until_idle(self) -> None:
        """Wait until no request uses an adapter."""
        wait_until(lambda: self.server.registry.open_leases() == 0, "leases to be given back")

    def upload(self, name: str, archive: Path, **fields: str) -> httpx.Response:
        with archive.open("rb") as file:
            return self.http.post(
                "/adapters", data={"name": name, **fields}, files={"file": (archive.name, file)}
            )


@contextmanager
def serve(settings: Settings) -> Iterator[Live]:
    """A server for the length of a `with` block."""
    server = assemble(settings, lambda line: None, on_broken=lambda: None)
    server.engine.start()
    config = uvicorn.Config(
        server.app,
        host="127.0.0.1",
        port=0,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE,
        http=heads.BoundedProtocol,
    )
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run)
    thread.start()
    wait_until(lambda: web.started or not thread.is_alive(), "the server to listen")
    port = web.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    try:
        with Checking(base_url=url, headers=headers, **options()) as http:
            http.declared = declared_by(server.app)
            yield Live(server, url, http)
    finally:
        web.should_exit = True
        thread.join()
        server.close()


@contextmanager
def serve_on_ray(settings: Settings) -> Iterator[Live]:
    """Two engines behind one HTTP side."""
    from support.ray_cluster import running

    with running(settings) as on_ray, Checking(base_url=on_ray.url, **options()) as http:
        http.declared = Declared(http.get("/openapi.json").json())
        yield Live(None, on_ray.url, http)


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer that must be one, with all that every error has."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code, error
    assert error["message"] and error["type"]
    if status == 422:
        assert error["problems"]
    return error
