"""Compiled step or generic path: decided once at start-up, and said."""

from __future__ import annotations

from contextlib import suppress

import torch

from lorry.errors import ModelError
from lorry.model import gpu, selfcheck
from lorry.model.loader import LoadedModel
from lorry.model.native import library
from lorry.model.native.lean import KV_DTYPE, LeanModel, unsuited
from lorry.model.native.selection import CompiledSelection
from lorry.model.runner import Runner


def kv_dtype(kernels: str, loaded: LoadedModel) -> torch.dtype:
    """Of the cache of the runner that `choose` is for: half precision where the compiled step
    will run, for all of its rows, else the model's own."""
    if kernels != "torch" and unsuited(loaded) is None:
        with suppress(library.Missing):
            library.find()
            return KV_DTYPE
    return loaded.dtype


def choose(
    kernels: str, loaded: LoadedModel, runner: Runner, *, max_tokens: int, max_rank: int
) -> str:
    """Give `runner` the compiled step if `kernels` and the model allow it; what was decided,
    for people.

    Raises:
        ModelError: `native` was asked for and cannot be had.
    """
    if kernels == "torch":
        return "PyTorch's operations, as asked for"
    if loaded.device.type == "cuda" and kernels == "auto":
        return gpu.choose(loaded, runner)
    try:
        name, built = library.find()
        if loaded.device.type == "cpu":
            runner.selection = CompiledSelection(built)
        why = unsuited(loaded)
        if why is not None:
            raise library.Missing(why)
    except library.Missing as missing:
        if kernels == "native":
            raise ModelError(
                f"--kernels native: the compiled step cannot run here: {missing}"
            ) from missing
        return f"PyTorch's operations; not the compiled step: {missing}"
    threads = torch.get_num_threads()
    runner.go_lean(
        LeanModel(
            built,
            loaded,
            runner.cache,
            runner.prompts,
            num_slots=runner.lora.num_slots,
            # The self-check runs whatever the limits are.
            max_tokens=max(max_tokens, selfcheck.MAX_TOKENS),
            max_context=max(loaded.max_model_len, selfcheck.MAX_TOKENS),
            max_rank=max_rank,
            num_threads=threads,
        )
    )
    return f"the compiled step, {name}, {threads} thread{'s' if threads > 1 else ''}"
