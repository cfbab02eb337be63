"""Builds the paths through a model, once, at start-up. The only place that chooses among them.

1. A first forward pass (`first_pass`) tells whether rows can be packed and what layers store.
2. `choose` takes the best kernels that the setting, the device and the model allow.
3. `build` connects them: a `PathSet` that never changes, and the `Executor` that runs it.
4. `checked` has `lorry.model.selfcheck` compare the result with transformers' own answers. Where
   they differ it builds the next best: PyTorch's operations in place of Triton's kernels or the
   compiled step, padded rows in place of packed ones.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from lorry.errors import ModelError, UnsupportedModel
from lorry.model import packed, padded, selfcheck
from lorry.model.base_loader import LinearReplacer, LoadedModel
from lorry.model.compiled import library, quantizer
from lorry.model.compiled.compiled_drawing import CompiledDrawing
from lorry.model.compiled.compiled_model import CompiledModel
from lorry.model.compiled.description import ModelDescription
from lorry.model.compiled.kept_base import KeptBases
from lorry.model.compiled.model_structs import KV_DTYPE
from lorry.model.compiled.suited import suited
from lorry.model.compiled.witness import Unknown
from lorry.model.dense import dense_weight
from lorry.model.drawing import TorchDrawing
from lorry.model.executor import Executor
from lorry.model.first_pass import FirstPass
from lorry.model.guard import Unsafe
from lorry.model.kept_verdict import Verdict
from lorry.model.kv_cache import KVCache, bytes_per_token
from lorry.model.packed import PackedModel
from lorry.model.padded import PaddedModel
from lorry.model.path_set import PathSet
from lorry.model.quiet import quiet
from lorry.model.trial import Noise
from lorry.model.triton_fit import unfit_for_triton
from lorry.model.virtual_tokens import VirtualTokenSlots
from lorry_adapters.lora.layers import LoraModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernels:
    """What runs the steps."""

    kind: Literal["compiled", "triton", "torch"]
    kv_dtype: torch.dtype
    """Of the cache, for the rows of all paths."""
    said: str
    """What was chosen and why, for people."""
    library: ctypes.CDLL | None = None
    """The compiled one, where there is one for the device. It draws tokens even where PyTorch's
    operations run the steps."""
    threads: int = 1
    """Of the compiled step."""
    described: ModelDescription | None = None
    """What the compiled step runs."""
    required: bool = False
    """They were asked for: nothing else will do."""
    proven: bool = False
    """An earlier start has checked them beyond windows and chunks."""
    noise: Noise = field(default_factory=Noise)
    """Of `selfcheck.SHORT`, measured with the cache's dtype."""


@dataclass(frozen=True, slots=True)
class Sizes:
    kv_blocks: int
    block_size: int
    """Tokens."""
    max_slots: int
    max_rank: int
    max_tokens: int = selfcheck.MAX_TOKENS
    """Of one step; the self-check runs whatever it is."""


def first_pass(loaded: LoadedModel) -> FirstPass:
    """Packed where its modeling code lets us replace its attention, else padded. That a model runs
    in this way does not mean that it answers rightly: `checked` sees to that.

    Leaves the model switched to the attention of its path.

    Raises:
        UnsupportedModel: it runs in neither way.
    """
    try:
        with quiet():
            return FirstPass(packed.measure(loaded), reach=packed.reach(loaded))
    except UnsupportedModel as error:
        return first_pass_padded(loaded, str(error))


def first_pass_padded(loaded: LoadedModel, unpackable: str) -> FirstPass:
    """Of padded rows; `unpackable` tells why they cannot be packed.

    Raises:
        UnsupportedModel: it does not run in this way either.
    """
    try:
        with quiet():
            shapes = padded.measure(loaded)
            return FirstPass(shapes, unpackable, padded.reach(loaded, len(shapes)))
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"{loaded.layout.architecture} is not served: packed in one row, {unpackable}; "
            f"padded, {error}"
        ) from error


def replacer(
    kernels: str, home: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> LinearReplacer | None:
    """What `load` is given to replace a base's linears on a CPU by compiled ones, which are kept in
    `home`; None where there is no compiled product, or `--kernels` forbids it. Quantizing to 4
    bits is compiled from here on, too."""
    if kernels == "torch":
        return None
    try:
        _, built = library.find()
    except library.Missing:
        return None
    quantizer.install(built)
    return KeptBases(built, home, say)


def choose(
    asked: str,
    loaded: LoadedModel,
    found: FirstPass,
    *,
    block_size: int,
    kv_cache: str = "auto",
    kept: Verdict | None = None,
) -> Kernels:
    """The kernels for a model. `asked` and `kv_cache`: as `--kernels` and `--kv-cache-dtype` have
    them. `kept`: what an earlier start has found out about the compiled step, and checked.

    Raises:
        ModelError: the compiled step was asked for, by either, and cannot be had.
    """
    in_bytes = kv_cache == "int8"
    if in_bytes and (asked == "torch" or loaded.device.type == "cuda"):
        raise ModelError("--kv-cache-dtype int8: only the compiled step on a CPU has such a cache")
    if asked == "torch":
        return Kernels("torch", loaded.dtype, "PyTorch's operations, as asked for")
    if loaded.device.type == "cuda" and asked == "auto":
        return choose_for_gpu(loaded, found, block_size=block_size)
    built: ctypes.CDLL | None = None
    try:
        name, built = library.find()
        longest = max(loaded.max_model_len, *selfcheck.LONG.lengths)
        described = kept.described if kept else suited(loaded, found.shapes, longest)
    except (library.Missing, Unknown) as missing:
        if asked == "compiled" or in_bytes:
            option = "--kv-cache-dtype int8" if in_bytes else "--kernels compiled"
            raise ModelError(f"{option}: the compiled step cannot run here: {missing}") from missing
        said = f"PyTorch's operations; not the compiled step: {missing}"
        return Kernels("torch", loaded.dtype, said, built)
    threads = torch.get_num_threads()
    said = f"the compiled step, {name}, {threads} thread{'s' if threads > 1 else ''}"
    return Kernels(
        "compiled",
        # For all rows, those too that run packed beside the compiled step.
        torch.int8 if in_bytes else KV_DTYPE,
        said,
        built,
        threads,
        described,
        required=asked == "compiled" or in_bytes,
        proven=kept is not None,
        noise=kept.noise if kept else Noise(),
    )


def choose_for_gpu(loaded: LoadedModel, found: FirstPass, *, block_size: int) -> Kernels:
    """Triton's kernels, if each of them runs here and is right."""
    why = f"rows are padded: {found.unpackable}" if found.unpackable is not None else None
    why = why or unfit_for_triton(loaded, found.shapes.values(), block_size)
    if why is not None:
        return _without_triton(loaded, why)
    return Kernels("triton", loaded.dtype, "triton's kernels")


def _without_triton(loaded: LoadedModel, why: str) -> Kernels:
    logger.warning("PyTorch's operations run the steps, not Triton's kernels: %s", why)
    return Kernels("torch", loaded.dtype, f"PyTorch's operations; not Triton's kernels: {why}")


def _without_compiled(loaded: LoadedModel, kernels: Kernels, why: str) -> Kernels:
    logger.warning("PyTorch's operations run the steps, not the compiled step: %s", why)
    said = f"PyTorch's operations; not the compiled step: {why}"
    return Kernels("torch", loaded.dtype, said, kernels.library)


def build(loaded: LoadedModel, found: FirstPass, kernels: Kernels, sizes: Sizes) -> Executor:
    """Paths whose answers nobody has checked. They own the model from here on: its attention,
    its linears and its cache.

    Raises:
        ModelError: no memory or no threads for the compiled step.
    """
    cache = _cache_of(loaded, found, kernels, sizes)
    return _connect(loaded, found, kernels, sizes, cache, _lora_of(loaded, found, sizes))


def checked(
    loaded: LoadedModel,
    found: FirstPass,
    kernels: Kernels,
    sizes: Sizes,
    say: Callable[[str], None] = lambda line: None,
) -> Executor:
    """The best paths whose answers are right. Has `say` tell which they are.

    Raises:
        UnsupportedModel: the answers are wrong on every path that there is.
        ModelError: no memory or no threads for the compiled step, or the cache is too small for
            padded rows.
    """
    kernels, sizes, executor = _connected(loaded, found, kernels, sizes)
    if kernels.kind == "triton":
        wrong = problem(executor, loaded, kernels, sizes)
        if wrong is None:
            say(f"steps run on {kernels.said}")
            return executor
        kernels = _without_triton(loaded, f"{loaded.layout.architecture} is not served: {wrong}")
        before = executor.paths
        executor = _connect(loaded, found, kernels, sizes, before.cache, before.lora)
        del before
    if kernels.kind == "compiled" and not kernels.required:
        wrong = problem(executor, loaded, kernels, sizes)
        if wrong is None:
            say(f"steps run on {kernels.said}")
            leave_cores(executor)
            return executor
        kernels = _without_compiled(loaded, kernels, wrong)
        executor.paths.close()
        lora, nbytes = executor.paths.lora, executor.paths.cache.nbytes
        # Memory has no room for two caches.
        del executor
        sizes, executor = _anew(loaded, found, kernels, sizes, lora, nbytes)
    say(f"steps run on {kernels.said}")
    wrong = problem(executor, loaded, kernels, sizes)
    if wrong is not None and kernels.kind == "torch" and found.unpackable is None:
        lora, nbytes = executor.paths.lora, executor.paths.cache.nbytes
        del executor
        found = first_pass_padded(loaded, wrong)
        sizes, executor = _anew(loaded, found, kernels, sizes, lora, nbytes)
        wrong = problem(executor, loaded, kernels, sizes)
    if wrong is not None:
        executor.paths.close()
        if found.unpackable is not None:
            wrong = f"packed in one row, {found.unpackable}; padded, {wrong}"
        raise UnsupportedModel(f"{loaded.layout.architecture} is not served: {wrong}")
    leave_cores(executor)
    return executor


def _connected(
    loaded: LoadedModel, found: FirstPass, kernels: Kernels, sizes: Sizes
) -> tuple[Kernels, Sizes, Executor]:
    """`build`, by PyTorch's operations where a size is not what the description says."""
    cache, lora = _cache_of(loaded, found, kernels, sizes), _lora_of(loaded, found, sizes)
    try:
        return kernels, sizes, _connect(loaded, found, kernels, sizes, cache, lora)
    except Unsafe as error:
        why = str(error)
    if kernels.kind != "compiled" or kernels.required:
        raise ModelError(f"{loaded.layout.architecture} cannot run on {kernels.said}: {why}")
    nbytes = cache.nbytes
    del cache
    kernels = _without_compiled(loaded, kernels, why)
    return kernels, *_anew(loaded, found, kernels, sizes, lora, nbytes)


def leave_cores(executor: Executor) -> None:
    """Of the whole process: PyTorch has little left to do beside the compiled step, and its own
    threads would spin for a while after each operation, on the cores that the next step needs."""
    if executor.paths.compiled is not None:
        torch.set_num_threads(1)


def problem(executor: Executor, loaded: LoadedModel, kernels: Kernels, sizes: Sizes) -> str | None:
    """What is wrong with the answers on the paths of `executor`, if anything."""
    unpackable = executor.paths.unpackable

    def build_copy(copy: LoadedModel, kv_blocks: int, *, of: Kernels) -> Executor:
        found = first_pass(copy) if unpackable is None else first_pass_padded(copy, unpackable)
        small = Sizes(kv_blocks, selfcheck.BLOCK_SIZE, 1, 1, sizes.max_tokens)
        return build(copy, found, of, small)

    # Beside the compiled step rows run packed, with PyTorch's operations.
    kinds = [] if kernels.proven else [replace(kernels, kind="torch")]
    if kernels.kind == "compiled" and not kernels.proven:
        kinds.append(kernels)
    copies = [partial(build_copy, of=kind) for kind in kinds]
    return selfcheck.problem(executor, loaded, copies, kernels.noise)


def _anew(
    loaded: LoadedModel,
    found: FirstPass,
    kernels: Kernels,
    sizes: Sizes,
    lora: LoraModel,
    nbytes: int,
) -> tuple[Sizes, Executor]:
    """Other paths, with a cache of `nbytes` at most. Raises ModelError where that is too small."""
    block = bytes_per_token(found.shapes, kernels.kv_dtype) * sizes.block_size
    sizes = replace(sizes, kv_blocks=min(sizes.kv_blocks, nbytes // block))
    if sizes.kv_blocks < selfcheck.SHORT.blocks_needed(sizes.block_size):
        rows = "rows" if found.unpackable is None else "padded rows"
        raise ModelError(f"--kv-cache-memory is too small for this model's {rows}; give more")
    cache = _cache_of(loaded, found, kernels, sizes)
    return sizes, _connect(loaded, found, kernels, sizes, cache, lora)


def _cache_of(loaded: LoadedModel, found: FirstPass, kernels: Kernels, sizes: Sizes) -> KVCache:
    return KVCache(
        found.shapes,
        num_blocks=sizes.kv_blocks,
        block_size=sizes.block_size,
        dtype=kernels.kv_dtype,
        device=loaded.device,
    )


def _lora_of(loaded: LoadedModel, found: FirstPass, sizes: Sizes) -> LoraModel:
    """Wraps the model's linears, so one for each model."""
    return LoraModel(
        loaded.model,
        loaded.layout,
        num_slots=sizes.max_slots,
        max_rank=sizes.max_rank,
        dtype=loaded.dtype,
        device=loaded.device,
        weight=dense_weight,
        head=found.reach.head,
    )


def _connect(
    loaded: LoadedModel,
    found: FirstPass,
    kernels: Kernels,
    sizes: Sizes,
    cache: KVCache,
    lora: LoraModel,
) -> Executor:
    virtual_tokens = VirtualTokenSlots(cache, loaded.dtype, loaded.device)
    model = PackedModel if found.unpackable is None else PaddedModel
    pooled = model(loaded, cache, lora, virtual_tokens)
    paths = PathSet(
        layout=found.reach.of(loaded.layout),
        dtype=loaded.dtype,
        unpackable=found.unpackable,
        cache=cache,
        virtual_tokens=virtual_tokens,
        lora=lora,
        pooled=pooled,
        general=pooled,
    )
    lora.use(None)
    if kernels.kind == "triton":
        from lorry.model import triton_model

        assert isinstance(pooled, PackedModel)
        triton = triton_model.TritonModel(
            pooled, cache, lora, device=loaded.device, dtype=loaded.dtype
        )
        paths = replace(paths, general=triton, upload=triton.bring)
    if kernels.kind == "compiled":
        assert kernels.library is not None and kernels.described is not None
        compiled = CompiledModel(
            kernels.library,
            loaded,
            kernels.described,
            cache,
            virtual_tokens,
            num_slots=sizes.max_slots,
            max_tokens=max(sizes.max_tokens, selfcheck.MAX_TOKENS),
            max_context=max(loaded.max_model_len, selfcheck.MAX_TOKENS),
            max_rank=sizes.max_rank,
            num_threads=kernels.threads,
        )
        paths = replace(paths, compiled=compiled)
    if kernels.library is None or loaded.device.type != "cpu":
        return Executor(paths, TorchDrawing())
    return Executor(paths, CompiledDrawing(kernels.library))
