"""The composition root: the only file that knows everybody. Settings in, a server out."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import psutil
import torch
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

import lorry
from lorry import logs, samples
from lorry.advice import advised
from lorry.api import http10
from lorry.api.app import Services, create_app
from lorry.core import TokenEvent
from lorry.engine.blocks import BlockPool
from lorry.engine.client import EngineClient
from lorry.engine.constraints import Constraints, compilers
from lorry.engine.letters import Forget, Mailbox
from lorry.engine.limits import Limits
from lorry.engine.loop import Engine
from lorry.engine.residency import SlotResidency
from lorry.engine.scheduler import Scheduler
from lorry.errors import GenerationFailed, ModelError, SettingsError
from lorry.metrics import Metrics
from lorry.model import memory, paths, selfcheck
from lorry.model.executor import Executor
from lorry.model.kv_cache import bytes_per_token
from lorry.model.loader import LoadedModel, load
from lorry.model.path_set import PathSet
from lorry.option import format_size
from lorry.settings import Settings
from lorry_adapters.lora.slot_table import SlotTable
from lorry_adapters.registry.registry import Registry

BLOCK_SIZE = 16
"""Tokens in a KV block: small enough that little of the last one is wasted."""

Say = Callable[[str], None]


KEEP_ALIVE = 75
"""Seconds that an idle connection stays. Longer than clients and proxies keep theirs, which is
5 to 60: whoever sends on a connection that is being closed here sees it reset, and nobody sends
a POST again by itself."""


@dataclass(slots=True)
class Server:
    """Everything that runs; made by `assemble`, ended by `close`."""

    settings: Settings
    loaded: LoadedModel
    registry: Registry
    engine: Engine
    client: EngineClient
    executor: Executor
    app: FastAPI

    def close(self) -> None:
        self.engine.stop()
        self.executor.paths.close()
        self.registry.close()


def assemble(settings: Settings, say: Say, *, on_broken: Callable[[], None]) -> Server:
    """Load the base, check that it is served right, and connect the rooms.

    Raises:
        SettingsError, ModelError, UnsupportedModel: with what to do about it.
    """
    loaded = load(settings, say)
    executor = _executor(settings, loaded, say)
    cache = executor.paths.cache
    registry = Registry(
        settings.home,
        executor.paths.layout,
        max_rank=settings.max_lora_rank,
        max_upload=settings.max_upload,
        max_host_bytes=settings.host_cache_memory,
        max_host_adapters=settings.max_cpu_loras,
        reserved_names=frozenset({loaded.name, *loaded.other_names}),
        allowed_roots=settings.adapter_roots,
        keep_unclaimed=timedelta(days=settings.keep_unclaimed),
        words=settings.adapter_templates == "use",
    )
    vocab_size: int = loaded.config.get_text_config().vocab_size
    mailbox = Mailbox()
    residency = SlotResidency(
        SlotTable(settings.max_loras),
        fetch=lambda digest: executor.placement.prepare(registry.weights(digest)),
        place=executor.placement.place,
        wake=mailbox.wake,
    )
    scheduler = Scheduler(
        Limits(
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_model_len=loaded.max_model_len,
        ),
        BlockPool(cache.num_blocks, BLOCK_SIZE),
        residency,
    )
    metrics = Metrics(CollectorRegistry(), base_name=loaded.name)
    outbox: list[Callable[[Sequence[TokenEvent]], None]] = []
    engine = Engine(
        scheduler,
        residency,
        executor,
        mailbox,
        Constraints(
            compilers(
                loaded.tokenizer, vocab_size=vocab_size, closed=settings.json_schema == "closed"
            ),
            wake=mailbox.wake,
        ),
        emit=lambda events: outbox[0](events),
        on_step=metrics.observe_step,
        on_broken=on_broken,
    )
    client = EngineClient(engine, registry, max_queue=settings.max_queue)
    outbox.append(client.emit)
    registry.subscribe(lambda digest: mailbox.put(Forget(digest)))
    app = create_app(
        Services(
            client=client,
            registry=registry,
            tokenizer=loaded.tokenizer,
            settings=settings,
            metrics=metrics,
            base_name=loaded.name,
            other_names=loaded.other_names,
            repository=loaded.repository,
            eos_token_ids=loaded.eos_token_ids,
            max_model_len=loaded.max_model_len,
            info=lambda: _info(settings, loaded, executor.paths),
            quantization=loaded.quantization,
            vocab_size=vocab_size,
            give_back=memory.give_back_freed,
        )
    )
    return Server(settings, loaded, registry, engine, client, executor, app)


def _executor(settings: Settings, loaded: LoadedModel, say: Say) -> Executor:
    """The paths that serve, checked, and what is told of them and of their cache."""
    found = paths.first_pass(loaded)
    kernels = paths.choose(settings.kernels, loaded, found, block_size=BLOCK_SIZE)
    per_token = bytes_per_token(found.shapes, kernels.kv_dtype)
    sizes = paths.Sizes(
        kv_blocks=_kv_blocks(settings, loaded, per_token),
        block_size=BLOCK_SIZE,
        max_slots=settings.max_loras,
        max_rank=settings.max_lora_rank,
        max_tokens=settings.max_num_batched_tokens,
    )
    executor = paths.checked(loaded, found, kernels, sizes, say)
    served = executor.paths
    if served.unpackable is not None:
        say(f"rows are padded, which costs time: packed in one row, {served.unpackable}")
    memory.give_back_freed()
    tokens = served.cache.num_blocks * BLOCK_SIZE
    say(
        f"KV cache takes {format_size(served.cache.nbytes)}: "
        f"{tokens} tokens of {format_size(served.cache.nbytes // tokens)}, "
        f"{str(served.cache.dtype).removeprefix('torch.')}"
    )
    return executor


def _kv_blocks(settings: Settings, loaded: LoadedModel, per_token: int) -> int:
    """Blocks that the budget buys, and no more than the rows could ever fill."""
    there = _memory_of(loaded.device)
    if settings.kv_cache_memory > there and settings.kv_cache_memory != Settings().kv_cache_memory:
        raise SettingsError(
            f"--kv-cache-memory {format_size(settings.kv_cache_memory)} is more memory than the "
            f"{'GPU' if loaded.device.type == 'cuda' else 'machine'} has, which is "
            f"{format_size(there)}; give less"
        )
    affordable = settings.kv_cache_memory // (per_token * BLOCK_SIZE)
    least = selfcheck.SHORT.blocks_needed(BLOCK_SIZE)
    if affordable < least:
        raise ModelError(
            f"--kv-cache-memory {format_size(settings.kv_cache_memory)} does not hold "
            f"{least * BLOCK_SIZE} tokens of {format_size(per_token)} each; give more"
        )
    per_row = -(-loaded.max_model_len // BLOCK_SIZE)
    return min(affordable, max(least, settings.max_num_seqs * per_row))


def _memory_of(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _info(settings: Settings, loaded: LoadedModel, served: PathSet) -> Mapping[str, object]:
    """What `/info` says of the model and of the memory, bytes by part."""
    return {
        "version": lorry.__version__,
        "model_id": loaded.name,
        "model_source": loaded.source,
        "model_revision": loaded.revision,
        "architecture": loaded.layout.architecture,
        "quantization": loaded.quantization,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "kv_cache_dtype": str(served.cache.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "kernels": served.kernels,
        "rows": served.row_layout,
        "torch": torch.__version__,
        "max_model_len": loaded.max_model_len,
        "max_loras": settings.max_loras,
        "max_lora_rank": settings.max_lora_rank,
        "memory": {
            **loaded.memory,
            "kv_cache": served.cache.nbytes,
            "adapter_slots_reserved": served.slot_bytes,
            "host_cache_limit": settings.host_cache_memory,
        },
    }


class _Listener(uvicorn.Server):
    """uvicorn, but SIGTERM first lets running requests end while new ones are told 503.

    uvicorn alone would close its sockets first, and a client could not tell a server
    that drains from one that is gone.
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
            host = f"[{host}]" if ":" in host else host
            self._say(f"lorry serves {self._server.loaded.name} on http://{host}:{port}")

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
        """The engine is broken; called in its thread."""
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
    # Before the model: a port in use should not cost the time of a load.
    listening = _bind(settings)
    listeners: list[_Listener] = []
    server = assemble(settings, say, on_broken=lambda: listeners[0].give_up())
    try:
        if settings.samples:
            added = samples.offer(server.registry, server.loaded.source, settings.home)
            if added:
                say(f"sample adapters: {', '.join(added)}")
        # After the samples, which may have been among what was lost.
        for line in server.registry.story():
            say(advised(line))
        config = uvicorn.Config(
            server.app,
            log_config=None,
            # `Journal` has a line for each request.
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
            server_header=False,
            # By itself uvicorn believes whoever connects from this machine; `create_app` has
            # the proxies that are trusted.
            proxy_headers=False,
            http=http10.Protocol,
        )
        listener = _Listener(config, server, say)
        listeners.append(listener)
        # What start-up made lives as long as the process; without this the collector looks
        # through all of it again and again, in the middle of a step.
        gc.collect()
        gc.freeze()
        server.engine.start()
        listener.run(sockets=[listening])
    finally:
        server.close()
    if listener.failed:
        raise GenerationFailed("the engine broke, see the log above; the server has stopped")


def _bind(settings: Settings) -> socket.socket:
    """A bound socket that does not listen yet: clients are refused until it serves."""
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
