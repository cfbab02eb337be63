"""Lorry on a Ray of its own, which listens on 127.0.0.1 alone and ends with the block."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from lorry.settings import Settings
from support.patience import client, wait_until

# Before Ray is imported: a token for this cluster, instead of a file in the home of whoever runs
# the tests.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

from lorry.scale.cluster import joined, served
from lorry.scale.ray import Size

CPUS = 0.5
"""For each replica."""


@dataclass(eq=False)
class OnRay:
    """The running application."""

    url: str
    http: httpx.Client
    settings: Settings
    size: Size

    def each(self, name: str, **labels: str) -> dict[str, float]:
        """A sample of each replica, by its name."""
        return {
            sample.labels["replica"]: sample.value
            for family in text_string_to_metric_families(self.http.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        }

    def wait_for(self, name: str, *values: float) -> None:
        """Wait until the replicas' samples are these, in any order."""
        wanted = sorted(values)
        wait_until(lambda: sorted(self.each(name).values()) == wanted, f"{name} to be {wanted}")

    def wait_until_idle(self) -> None:
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
            self.wait_for(name, *[0] * self.size.replicas)

    def upload(self, name: str, archive: Path) -> httpx.Response:
        with archive.open("rb") as file:
            files = {"file": (archive.name, file)}
            return self.http.post("/adapters", data={"name": name, "replace": "true"}, files=files)


@contextmanager
def running(settings: Settings, replicas: int = 2) -> Iterator[OnRay]:
    """The application for the length of a `with` block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings, size = replace(settings, port=port), Size(replicas, CPUS)
    url = f"http://127.0.0.1:{port}"
    with joined(None, replicas * CPUS), served(settings, size), client(url) as http:
        on_ray = OnRay(url, http, settings, size)
        on_ray.wait_until_idle()
        yield on_ray


def processes() -> list[psutil.Process]:
    """All of Ray's, which are below this one."""
    return psutil.Process().children(recursive=True)


def engines() -> list[psutil.Process]:
    """The processes of the engine's replicas."""
    return [one for one in processes() if "ServeReplica:lorry:engine" in " ".join(one.cmdline())]
