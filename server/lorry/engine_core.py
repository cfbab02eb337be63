"""Everything below the engine's boundary, built from settings: the base, its paths, the engine.

The server builds it in its own process, or `lorry.engine_program` does in another one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch

import lorry
from lorry.adapter_needs import AdapterNeeds
from lorry.cache_memory import for_adapters, for_host_cache, for_kv_cache
from lorry.core import Base, EngineStats, TokenEvent
from lorry.engine.blocks import BlockPool
from lorry.engine.constraints import Constraints, compilers
from lorry.engine.letters import Mailbox
from lorry.engine.limits import Limits
from lorry.engine.loop import Engine
from lorry.engine.prefix_cache import PrefixCache
from lorry.engine.recent_answers import MEMORY, AnswerBook
from lorry.engine.residency import Accounts, SlotResidency
from lorry.engine.scheduler import Scheduler
from lorry.engine.speculation import Speculation
from lorry.errors import ModelError, SettingsError
from lorry.model import decode_speed, memory, paths, selfcheck
from lorry.model.base_loader import LoadedModel, load
from lorry.model.executor import Executor
from lorry.model.kept_verdict import Verdict, verdict_of
from lorry.model.kv_cache import bytes_per_token
from lorry.model.path_set import PathSet
from lorry.model.quantize import resolve
from lorry.model.threads import use_threads
from lorry.option import format_size
from lorry.settings import Settings
from lorry_adapters.lora import memory_limit
from lorry_adapters.lora.adapter_memory import AdapterMemory
from lorry_adapters.lora.adapter_size import AdapterSize
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.slot_table import SlotTable
from lorry_adapters.lora.weights import AdapterWeights

BLOCK_SIZE = 16
"""Tokens in a KV block: small enough that little of the last one is wasted."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class EngineCore:
    """A base that is loaded and checked."""

    settings: Settings
    loaded: LoadedModel
    executor: Executor
    base: Base
    fixed_tokens: float
    """`lorry.model.decode_speed.fixed_tokens`."""
    host_cache_memory: int
    """Most bytes of the host cache."""
    adapter_memory: AdapterMemory
    """Of all adapters, those of the host cache included."""

    @property
    def layout(self) -> BaseLayout:
        return self.executor.paths.layout

    def engine(
        self,
        weights: Callable[[str], AdapterWeights],
        size_of: Callable[[str], AdapterSize],
        *,
        emit: Callable[[Sequence[TokenEvent]], None],
        on_step: Callable[[int, float], None],
        on_broken: Callable[[], None],
        on_stats: Callable[[EngineStats], None] = lambda stats: None,
        pinned: Callable[[], Collection[str]] = tuple,
    ) -> Engine:
        """Not started yet. `weights(digest)` reads an adapter and `size_of(digest)` its header, in
        a thread; AdapterError. `pinned`: as for `SlotResidency`."""
        settings, placement = self.settings, self.executor.placement
        mailbox = Mailbox()
        residency = SlotResidency(
            SlotTable(settings.max_loras),
            fetch=lambda digest: placement.prepare(weights(digest)),
            place=placement.place,
            wake=mailbox.wake,
            clear=placement.clear,
            pinned=pinned,
            accounts=Accounts(
                self.adapter_memory,
                self.base.adapter_needs,
                size_of,
                lambda prepared: prepared.size,
            ),
        )
        placement.grow = residency.grow
        blocks = BlockPool(self.executor.paths.cache.num_blocks, BLOCK_SIZE)
        limits = Limits(
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_model_len=self.base.max_model_len,
            max_step_time=settings.max_step_time or None,
        )
        per_caller = settings.prefix_cache_scope == "caller"
        with_answers = settings.speculative == "ngram+answers"
        scheduler = Scheduler(
            limits,
            blocks,
            residency,
            PrefixCache(
                blocks,
                self.executor.path_of if settings.prefix_cache == "on" else None,
                per_caller=per_caller,
            ),
            Speculation(
                limits,
                blocks,
                always=settings.speculative != "off",
                fixed=self.fixed_tokens,
                suits=self.executor.takes_drafts,
                answers=AnswerBook(per_caller=per_caller) if with_answers else None,
            ),
        )
        compiler_of = compilers(
            self.loaded.tokenizer,
            vocab_size=self.base.vocab_size,
            closed=settings.json_schema == "closed",
        )
        return Engine(
            scheduler,
            residency,
            self.executor,
            mailbox,
            Constraints(compiler_of, wake=mailbox.wake),
            emit=emit,
            slot_bytes=lambda: self.executor.paths.slot_bytes,
            adapter_memory=self.adapter_memory,
            on_step=on_step,
            on_stats=on_stats,
            on_broken=on_broken,
        )

    def close(self) -> None:
        """After the engine has stopped."""
        self.executor.paths.close()


def load_core(settings: Settings, say: Say) -> EngineCore:
    """Load the base and check that it is served right.

    Raises:
        SettingsError, ModelError, UnsupportedModel: with what to do about it.
    """
    _check_cache(settings, resolve(settings).device)
    use_threads(settings.threads, say)
    home = settings.home if settings.keep_packed else None
    loaded = load(settings, say, replacer=paths.replacer(settings.kernels, home, say))
    executor = _executor(settings, loaded, say)
    served = executor.paths
    adapters = for_adapters(settings, _free(loaded.device), served.cache.nbytes)
    host_cache = min(adapters, for_host_cache(settings, memory_limit.free()))
    say(
        f"adapters take at most {format_size(adapters)}, "
        f"of which {format_size(host_cache)} in the host cache"
    )
    base = Base(
        name=loaded.name,
        other_names=loaded.other_names,
        repository=loaded.repository,
        source=loaded.source,
        quantization=loaded.quantization,
        eos_token_ids=loaded.eos_token_ids,
        max_model_len=loaded.max_model_len,
        vocab_size=loaded.config.get_text_config().vocab_size,
        about=_about(settings, loaded, served, host_cache, adapters),
        adapter_needs=AdapterNeeds(
            adapters, packed=served.compiled is not None, itemsize=served.dtype.itemsize
        ),
    )
    drafts = settings.speculative != "off"
    fixed = decode_speed.fixed_tokens(executor) if drafts else decode_speed.FIXED_TOKENS
    if drafts:
        say(f"drafts: eight tokens take {(fixed + 8) / (fixed + 1):.1f} times as long as one")
    if settings.speculative == "ngram+answers":
        say(f"recent answers to draft from take at most {format_size(MEMORY)}")
    return EngineCore(settings, loaded, executor, base, fixed, host_cache, AdapterMemory(adapters))


def _executor(settings: Settings, loaded: LoadedModel, say: Say) -> Executor:
    """The paths that serve, checked, and what is told of them and of their cache."""
    found = paths.first_pass(loaded)
    verdict = verdict_of(settings, loaded, found)
    kernels = paths.choose(
        settings.kernels,
        loaded,
        found,
        block_size=BLOCK_SIZE,
        kv_cache=settings.kv_cache_dtype,
        kept=verdict.read(),
    )
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
    if served.compiled is None:
        verdict.forget()
    elif kernels.described is not None and not kernels.proven:
        verdict.keep(Verdict(kernels.described, kernels.noise))
    if served.row_layout == "padded":
        say(f"rows are padded, which costs time: packed in one row, {served.unpackable}")
    memory.give_back_freed()
    speed = decode_speed.measured(executor)
    if speed is not None:
        say(speed.said)
    tokens = served.cache.num_blocks * BLOCK_SIZE
    say(
        f"KV cache takes {format_size(served.cache.nbytes)}: "
        f"{tokens} tokens of {format_size(served.cache.nbytes // tokens)}, "
        f"{str(served.cache.dtype).removeprefix('torch.')}"
    )
    return executor


def _check_cache(settings: Settings, device: torch.device) -> None:
    """Raise SettingsError for a cache that can never fit, before anything is fetched or loaded."""
    there = _memory_of(device)
    if settings.kv_cache_memory is not None and settings.kv_cache_memory > there:
        contained = there < psutil.virtual_memory().total
        place = "GPU" if device.type == "cuda" else "container" if contained else "machine"
        raise SettingsError(
            f"--kv-cache-memory {format_size(settings.kv_cache_memory)} is more memory than the "
            f"{place} has, which is "
            f"{format_size(there)}; give less"
        )


def _kv_blocks(settings: Settings, loaded: LoadedModel, per_token: int) -> int:
    """Blocks that the budget buys, and no more than the rows could ever fill."""
    memory = for_kv_cache(settings, _free(loaded.device))
    affordable = memory // (per_token * BLOCK_SIZE)
    least = selfcheck.SHORT.blocks_needed(BLOCK_SIZE)
    if affordable < least:
        raise ModelError(
            f"a KV cache of {format_size(memory)} does not hold {least * BLOCK_SIZE} tokens of "
            f"{format_size(per_token)} each; give --kv-cache-memory more"
        )
    per_row = -(-loaded.max_model_len // BLOCK_SIZE)
    return min(affordable, max(least, settings.max_num_seqs * per_row))


def _memory_of(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory_limit.total()


def _free(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory_limit.free()


def _about(
    settings: Settings, loaded: LoadedModel, served: PathSet, host_cache: int, adapters: int
) -> Mapping[str, object]:
    """What `/info` says of the model and of the memory, bytes by part."""
    return {
        "version": lorry.__version__,
        "model_id": loaded.name,
        "model_source": loaded.source,
        "model_revision": loaded.revision,
        "architecture": loaded.layout.architecture,
        "parameters": loaded.layout.weights(),
        "quantization": loaded.quantization,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "kv_cache_dtype": str(served.cache.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "kernels": served.kernels,
        "rows": served.row_layout,
        "prefix_cache": settings.prefix_cache,
        "speculative": settings.speculative,
        "torch": str(torch.__version__),
        "max_model_len": loaded.max_model_len,
        "max_loras": settings.max_loras,
        "max_lora_rank": settings.max_lora_rank,
        "memory": {
            **loaded.memory,
            "kv_cache": served.cache.nbytes,
            "host_cache_limit": host_cache,
            "adapter_limit": adapters,
        },
    }
