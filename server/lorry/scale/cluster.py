"""`lorry ray serve`: runs the application on a cluster of Ray until it is told to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Ray reads it when it is imported, and reports to its makers unless it is there.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from ray._private import ray_constants

from lorry.bootstrap import check_reach
from lorry.errors import ModelError
from lorry.scale.ray import Size, application
from lorry.settings import Settings

NAME = "lorry"
"""The application's, in Serve."""


@contextmanager
def joined(address: str | None, cpus: float) -> Iterator[None]:
    """Join the cluster at `address`. Without one, start a cluster on this machine with so many
    CPUs, which listens on 127.0.0.1 alone, and end it afterwards."""
    if address is None:
        # Otherwise Ray replaces a loopback address by one that other machines reach.
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
        # By default Ray gives its workers the lowest priorities.
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(num_cpus=max(1, round(cpus + 0.5)), include_dashboard=False)
    else:
        ray.init(address=address)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def served(settings: Settings, size: Size) -> Iterator[None]:
    """Run the application on the cluster that was joined. At the end running requests have
    `shutdown_grace` seconds.

    Raises:
        ModelError: a deployment did not start; Ray's log says why.
    """
    serve.start(http_options={"host": settings.host, "port": settings.port})
    try:
        try:
            serve.run(application(settings, size), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise ModelError(f"the application did not start on Ray: {error}") from error
        yield
    finally:
        serve.delete(NAME)
        serve.shutdown()


def run(settings: Settings, size: Size, address: str | None, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        SettingsError: other machines reach the host, and there is no key.
        ModelError: as `served`.
    """
    check_reach(settings)
    told = threading.Event()
    with joined(address, size.replicas * size.cpus):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: told.set())
        with served(settings, size):
            say(
                f"lorry serves {settings.model} with {size.replicas} replicas on "
                f"http://{settings.host}:{settings.port}"
            )
            told.wait()
            say(f"shutting down: running requests have {settings.shutdown_grace:g} s")
