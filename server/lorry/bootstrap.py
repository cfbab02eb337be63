"""The composition root: the only file that knows all others. Builds a server from settings."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from transformers import PreTrainedTokenizerFast

from lorry import engine_program, home_contents, logs, samples
from lorry.access.access_control import AccessControl
from lorry.access.access_database import has_keys
from lorry.advice import advised
from lorry.api import heads
from lorry.api.app import Services, create_app, hub_endpoint
from lorry.core import Base, TokenEvent
from lorry.engine.client import EngineClient, Link
from lorry.engine.loop import Engine
from lorry.engine.remote import RemoteEngine
from lorry.engine_core import EngineCore, load_core
from lorry.errors import GenerationFailed, SettingsError
from lorry.fetch.resolvers import check_resolvers
from lorry.hostname import is_loopback
from lorry.metrics import Metrics
from lorry.model import memory
from lorry.model.base_loader import tokenizer_of
from lorry.retiring import Retiring
from lorry.scrape import EngineNumbers
from lorry.settings import Settings
from lorry.watched_folder import WatchedFolder
from lorry_adapters.lora.adapter_memory import AdapterMemory
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.registry.host_cache import AdapterCache
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.retention import Retention

Say = Callable[[str], None]


KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than clients and proxies keep theirs, which is 5
to 60. A client that sends on a connection while it is closed here sees a reset, and no client
repeats a POST by itself."""


class EngineElsewhere(Link, Protocol):
    """An engine in another process, or several of them."""

    base: Base
    layout: BaseLayout

    @property
    def cache(self) -> AdapterCache: ...

    def connect(
        self,
        *,
        emit: Callable[[Sequence[TokenEvent]], None],
        on_step: Callable[[int, float], None],
        on_broken: Callable[[], None],
    ) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(slots=True)
class Server:
    """The parts of a running server; made by `assemble`, ended by `close`."""

    settings: Settings
    base: Base
    tokenizer: PreTrainedTokenizerFast
    registry: Registry
    access: AccessControl
    engine: Engine | EngineElsewhere
    client: EngineClient
    app: FastAPI
    core: EngineCore | None
    """None if the engine is elsewhere."""
    watched: WatchedFolder | None

    def close(self) -> None:
        if self.watched is not None:
            self.watched.close()
        self.engine.stop()
        if self.core is not None:
            self.core.close()
        self.access.close()
        self.registry.close()


def assemble(settings: Settings, say: Say, *, on_broken: Callable[[], None]) -> Server:
    """Load the base, check that it is served correctly, and connect the parts.

    Raises:
        SettingsError, ModelError, UnsupportedModel: with what to do about it.
    """
    check_resolvers(settings.adapter_resolvers, settings.adapter_sources, hub_endpoint(settings))
    if settings.engine_process == "on":
        return _assemble_apart(settings, say, on_broken)
    core = load_core(settings, say)
    registry, access = _registry(
        settings,
        core.base,
        core.layout,
        host_cache=core.host_cache_memory,
        memory=core.adapter_memory,
    )
    metrics = Metrics(
        CollectorRegistry(support_collectors_without_names=True), base_name=core.base.name
    )
    engine = core.engine(
        registry.weights,
        registry.size_of,
        emit=lambda events: client.emit(events),
        on_step=metrics.observe_step,
        on_broken=on_broken,
        pinned=registry.pinned,
    )
    client = EngineClient(engine, registry, max_queue=settings.max_queue)
    tokenizer = core.loaded.tokenizer
    return _server(settings, core.base, tokenizer, registry, access, engine, client, metrics, core)


def _assemble_apart(settings: Settings, say: Say, on_broken: Callable[[], None]) -> Server:
    """Start the engine in a process of its own."""
    engine = RemoteEngine(engine_program.run, settings, say)
    try:
        server = assemble_around(engine, settings, on_broken=on_broken)
    except BaseException:
        engine.stop()
        raise
    say(f"the engine runs in process {engine.pid}")
    return server


def assemble_around(
    engine: EngineElsewhere,
    settings: Settings,
    *,
    on_broken: Callable[[], None],
    numbers: Callable[[], Sequence[EngineNumbers]] | None = None,
) -> Server:
    """Build the HTTP side of an engine that runs elsewhere. `numbers`: as `Services.engines`.
    Raises as `assemble` does."""
    registry, access = _registry(settings, engine.base, engine.layout, cache=engine.cache)
    try:
        tokenizer = tokenizer_of(settings)
    except BaseException:
        access.close()
        registry.close()
        raise
    metrics = Metrics(
        CollectorRegistry(support_collectors_without_names=True), base_name=engine.base.name
    )
    client = EngineClient(engine, registry, max_queue=settings.max_queue)
    engine.connect(emit=client.emit, on_step=metrics.observe_step, on_broken=on_broken)
    return _server(
        settings, engine.base, tokenizer, registry, access, engine, client, metrics, None, numbers
    )


def _registry(
    settings: Settings,
    base: Base,
    layout: BaseLayout,
    *,
    host_cache: int = 0,
    memory: AdapterMemory | None = None,
    cache: AdapterCache | None = None,
) -> tuple[Registry, AccessControl]:
    """Open the home folder: its adapters, and who may use them. Either `host_cache`, its most
    bytes within `memory`, or the engine's `cache`."""
    access = AccessControl(settings.api_key)
    registry = Registry(
        settings.home,
        layout,
        max_rank=settings.max_lora_rank,
        max_upload=settings.max_upload,
        max_host_bytes=host_cache,
        max_host_adapters=settings.max_cpu_loras,
        memory=memory,
        why_never=base.adapter_needs.why_never,
        reserved_names=base.names,
        allowed_roots=settings.adapter_roots,
        keep_unclaimed=timedelta(days=settings.keep_unclaimed),
        words=settings.adapter_templates == "use",
        cache=cache,
        policy=access.policy,
        retention=Retention(settings.keep_versions, settings.keep_version_days),
        catalog=settings.catalog,
        make_blobs=home_contents.opener(settings),
    )
    try:
        access.open(settings.home, registry, settings.catalog)
    except BaseException:
        registry.close()
        raise
    return registry, access


def _server(
    settings: Settings,
    base: Base,
    tokenizer: PreTrainedTokenizerFast,
    registry: Registry,
    access: AccessControl,
    engine: Engine | EngineElsewhere,
    client: EngineClient,
    metrics: Metrics,
    core: EngineCore | None,
    numbers: Callable[[], Sequence[EngineNumbers]] | None = None,
) -> Server:
    registry.subscribe(client.forget)
    registry.subscribe_to_versions(metrics.forget)
    watched = _watched(settings, registry)
    app = create_app(
        Services(
            client=client,
            registry=registry,
            tokenizer=tokenizer,
            settings=settings,
            metrics=metrics,
            base=base,
            access=access,
            give_back=memory.give_back_freed,
            watched=None if watched is None else watched.problems,
            engines=numbers,
        )
    )
    if watched is not None:
        watched.start()
    return Server(settings, base, tokenizer, registry, access, engine, client, app, core, watched)


def _watched(settings: Settings, registry: Registry) -> WatchedFolder | None:
    if settings.watch_adapters is None:
        return None
    return WatchedFolder(
        registry,
        settings.watch_adapters,
        home=settings.home,
        roots=settings.adapter_roots,
        max_upload=settings.max_upload,
        removed=settings.watch_removed,
    )


class _Listener(uvicorn.Server):
    """uvicorn, except that after SIGTERM running requests end first while new ones get 503.

    uvicorn alone would close its sockets first, and a client could not distinguish a draining
    server from one that is gone.
    """

    def __init__(self, config: uvicorn.Config, server: Server, say: Say) -> None:
        super().__init__(config)
        self._server = server
        self._say = say
        self._drain: asyncio.Task[None] | None = None
        self.failed = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            everywhere = host in ("0.0.0.0", "::")
            host = f"[{host}]" if ":" in host else host
            self._say(f"lorry serves {self._server.base.name} on http://{host}:{port}")
            settings = self._server.settings
            if settings.ui == "on":
                # A browser cannot go to the address that stands for all.
                where = f"http://{'localhost' if everywhere else host}:{port}{settings.root_path}/"
                self._say(f"open {where} in a browser to try it")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain is not None:
            # Asked twice: now.
            self.should_exit = True
            return
        self._drain = asyncio.get_running_loop().create_task(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        grace = self._server.settings.shutdown_grace
        self._say(f"shutting down: running requests have {grace:g} s, new ones are refused")
        await self._server.client.drain(grace)
        self.should_exit = True

    def give_up(self) -> None:
        """Stop serving because the engine is broken. Called in the engine's thread."""
        self.failed = True
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Run until SIGTERM or Ctrl-C.

    Raises:
        SettingsError: the address cannot be listened on.
        ModelError: the base cannot be served.
        GenerationFailed: the engine broke; a supervisor should start the process again.
    """
    logs.setup(settings.log_level, settings.log_format)
    say = logs.news(settings.log_format)
    check_reach(settings)
    # Before the model: a port in use should not cost the time of a load.
    listening = _bind(settings)
    listeners: list[_Listener] = []
    server = assemble(settings, say, on_broken=lambda: listeners[0].give_up())
    retiring = Retiring(server.registry, server.access.audit, settings.keep_audit_days)
    try:
        offer_samples(server, say)
        config = uvicorn.Config(
            server.app,
            log_config=None,
            # `Journal` writes a line for each request.
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
            server_header=False,
            # By default uvicorn trusts all peers on this machine; `create_app` configures the
            # trusted proxies.
            proxy_headers=False,
            http=heads.BoundedProtocol,
        )
        listener = _Listener(config, server, say)
        listeners.append(listener)
        # Objects from the start live as long as the process. Otherwise the collector would scan
        # all of them again and again, in the middle of a step.
        gc.collect()
        gc.freeze()
        server.engine.start()
        retiring.start()
        listener.run(sockets=[listening])
    finally:
        retiring.stop()
        server.close()
    if listener.failed:
        raise GenerationFailed("the engine broke, see the log above; the server has stopped")


def offer_samples(server: Server, say: Say) -> None:
    """Register the samples that are new, and say what was found in the home folder."""
    if server.settings.samples:
        added = samples.offer(server.registry, server.base.source, server.settings.home)
        if added:
            say(f"sample adapters: {', '.join(added)}")
    # After the samples, which may have been among the lost adapters.
    for line in server.registry.story():
        say(advised(line))


def check_reach(settings: Settings) -> None:
    """Refuse to serve other machines without a key. Raises SettingsError, HomeUnusable,
    CatalogUnavailable."""
    if settings.open_to_anyone or settings.api_key is not None or is_loopback(settings.host):
        return
    if not has_keys(settings.home, settings.catalog):
        raise SettingsError(
            f"other machines may reach --host {settings.host}, and there is no API key: set "
            "LORRY_API_KEY, or say --open-to-anyone (LORRY_OPEN_TO_ANYONE=true) to serve whoever "
            "reaches it"
        )


def _bind(settings: Settings) -> socket.socket:
    """Return a bound socket that does not listen yet: clients are refused until it serves."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; "
            "choose another --host or --port"
        ) from error
    return bound
