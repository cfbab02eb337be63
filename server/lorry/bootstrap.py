"""The composition root: the only file that knows everybody. Settings in, a server out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

import lorry
from lorry.api.app import Services, create_app
from lorry.core import TokenEvent
from lorry.engine.blocks import BlockPool
from lorry.engine.client import EngineClient
from lorry.engine.loop import Engine, Forget, Mailbox
from lorry.engine.residency import SlotResidency
from lorry.engine.scheduler import Limits, Scheduler
from lorry.errors import ModelError
from lorry.metrics import Metrics
from lorry.model import selfcheck
from lorry.model.kv_cache import bytes_per_token
from lorry.model.loader import LoadedModel, load
from lorry.model.runner import Runner, measure
from lorry.option import format_size
from lorry.settings import Settings
from lorry_adapters.lora.slots import SlotTable
from lorry_adapters.registry.registry import Registry

logger = logging.getLogger(__name__)

BLOCK_SIZE = 16
"""Tokens in a KV block: small enough that little of the last one is wasted."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Server:
    """Everything that runs; made by `assemble`, ended by `close`."""

    settings: Settings
    loaded: LoadedModel
    registry: Registry
    engine: Engine
    client: EngineClient
    app: FastAPI

    def close(self) -> None:
        self.engine.stop()
        self.registry.close()


def assemble(settings: Settings, say: Say, *, on_broken: Callable[[], None]) -> Server:
    """Load the base, check that it is served right, and connect the rooms.

    Raises:
        SettingsError, ModelError, UnsupportedModel: with what to do about it.
    """
    loaded = load(settings, say)
    shapes = measure(loaded)
    per_token = bytes_per_token(shapes, loaded.dtype)
    blocks = _kv_blocks(settings, loaded, per_token)
    runner = Runner(
        loaded,
        kv_blocks=blocks,
        block_size=BLOCK_SIZE,
        max_slots=settings.max_loras,
        max_rank=settings.max_lora_rank,
        shapes=shapes,
    )
    selfcheck.check(runner, loaded)
    say(
        f"KV cache takes {format_size(runner.cache.nbytes)}: "
        f"{blocks * BLOCK_SIZE} tokens of {format_size(per_token)}"
    )
    registry = Registry(
        settings.home,
        loaded.layout,
        max_rank=settings.max_lora_rank,
        max_upload=settings.max_upload,
        max_host_bytes=settings.host_cache_memory,
        max_host_adapters=settings.max_cpu_loras,
        reserved_names=frozenset({loaded.name}),
        allowed_roots=settings.adapter_roots,
    )
    mailbox = Mailbox()
    residency = SlotResidency(
        SlotTable(settings.max_loras),
        fetch=registry.weights,
        place=runner.place,
        wake=mailbox.wake,
    )
    scheduler = Scheduler(
        Limits(
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_model_len=loaded.max_model_len,
        ),
        BlockPool(blocks, BLOCK_SIZE),
        residency,
    )
    metrics = Metrics(CollectorRegistry(), base_name=loaded.name)
    outbox: list[Callable[[list[TokenEvent]], None]] = []
    engine = Engine(
        scheduler,
        residency,
        runner,
        mailbox,
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
            eos_token_ids=loaded.eos_token_ids,
            max_model_len=loaded.max_model_len,
            info=lambda: _info(settings, loaded, runner),
        )
    )
    return Server(settings, loaded, registry, engine, client, app)


def _kv_blocks(settings: Settings, loaded: LoadedModel, per_token: int) -> int:
    """Blocks that the budget buys, and no more than the rows could ever fill."""
    affordable = settings.kv_cache_memory // (per_token * BLOCK_SIZE)
    if affordable < 1:
        raise ModelError(
            f"--kv-cache-memory {format_size(settings.kv_cache_memory)} does not hold "
            f"{BLOCK_SIZE} tokens of {format_size(per_token)} each; give more"
        )
    per_row = -(-loaded.max_model_len // BLOCK_SIZE)
    return min(affordable, settings.max_num_seqs * per_row)


def _info(settings: Settings, loaded: LoadedModel, runner: Runner) -> Mapping[str, object]:
    """What `/info` says of the model and of the memory, bytes by part."""
    return {
        "version": lorry.__version__,
        "model_id": loaded.name,
        "model_source": loaded.source,
        "model_revision": loaded.revision,
        "architecture": loaded.layout.architecture,
        "quantization": loaded.quantization,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "torch": torch.__version__,
        "max_model_len": loaded.max_model_len,
        "max_loras": settings.max_loras,
        "max_lora_rank": settings.max_lora_rank,
        "memory": {
            **loaded.memory,
            "kv_cache": runner.cache.nbytes,
            "adapter_slots_reserved": runner.lora.slot_bytes,
            "host_cache_limit": settings.host_cache_memory,
        },
    }
