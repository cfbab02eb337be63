"""Lorry as an application of Ray Serve: `lorry ray serve`, or `serve run lorry.scale.ray:app`.

Two deployments: `ingress` is the HTTP side, `engine` has the replicas.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

# Ray reads it when it is imported, and reports to its makers unless it is there.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import msgspec
from fastapi import FastAPI
from ray import serve

from lorry import logs
from lorry.bootstrap import Server, assemble_around, offer_samples
from lorry.configuration import load_settings
from lorry.engine.wire import FROM_ENGINE
from lorry.errors import SettingsError
from lorry.retiring import Retiring
from lorry.scale.ports import bind_to_the_node
from lorry.scale.replica import EngineReplica
from lorry.scale.replicas import Replicas
from lorry.scale.request_name import NamedByProxy
from lorry.settings import Settings

MANY = 100_000
"""Requests that the ingress takes at a time. It refuses by itself, by `max_queue`."""


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many replicas, and what Ray keeps for each."""

    replicas: Annotated[int, msgspec.Meta(ge=1)] = 1
    cpus: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """Also the threads that compute, unless `threads` says otherwise."""
    gpus: Annotated[float, msgspec.Meta(ge=0)] = 0.0


def app(args: Mapping[str, Any]) -> serve.Application:
    """Build the application. `args`: `config`, a file of settings, and the fields of `Size`.

    Raises:
        SettingsError: an unknown argument, or a bad value.
    """
    given = dict(args)
    config = given.pop("config", None)
    try:
        size = msgspec.convert(given, Size, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"an argument of the application: {error}") from error
    settings = load_settings({}, os.environ, None if config is None else Path(config))
    return application(settings, size)


def application(settings: Settings, size: Size) -> serve.Application:
    """Return the application, to be given to `serve.run`."""
    engines = serve.deployment(
        EngineReplica,
        name="engine",
        num_replicas=size.replicas,
        # A step's rows, and as many that wait: the engine chooses among these.
        max_ongoing_requests=2 * settings.max_num_seqs,
        graceful_shutdown_timeout_s=settings.shutdown_grace,
        # The ingress writes a line for each request (`lorry.requests`).
        logging_config={"enable_access_log": False},
        ray_actor_options={"num_cpus": size.cpus, "num_gpus": size.gpus},
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=MANY,
        graceful_shutdown_timeout_s=settings.shutdown_grace,
        # The ingress writes a line for each request (`lorry.requests`).
        logging_config={"enable_access_log": False},
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(settings, engines.bind(settings))


class Ingress:
    """The HTTP side."""

    def __init__(self, settings: Settings, engines: Any) -> None:
        """`engines`: the handle of the other deployment."""
        logs.setup(settings.log_level, settings.log_format)
        bind_to_the_node()
        self._settings = settings
        self._engines = engines
        self._server: Server | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once. Waits for a replica, which says what the base is."""
        ready = FROM_ENGINE.decode(await self._engines.describe.remote())
        replicas = Replicas(self._engines, ready)
        server = assemble_around(
            replicas, self._settings, on_broken=lambda: None, numbers=replicas.numbers
        )
        offer_samples(server, logs.news(self._settings.log_format))
        self._retiring = Retiring(
            server.registry, server.access.audit, self._settings.keep_audit_days
        )
        self._retiring.start()
        replicas.start()
        self._server = server
        server.app.add_middleware(NamedByProxy)
        return server.app

    def __del__(self) -> None:
        # Serve calls it when the requests have ended or their grace is over.
        if self._server is not None:
            self._retiring.stop()
            self._server.close()
