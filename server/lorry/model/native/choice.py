"""Compiled step or generic path: decided once at start-up, and said."""

from __future__ import annotations

import torch

from lorry.errors import ModelError
from lorry.model.loader import LoadedModel
from lorry.model.native import library
from lorry.model.native.lean import LeanModel, unsuited
from lorry.model.runner import Runner

PAIRS_PER_TOKEN = 8
"""Adapters of one token at most, as a request may name them."""


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
    why = unsuited(loaded)
    built = None
    if why is None:
        built = library.find()
        if built is None:
            why = (
                "it was not built; install a C compiler and then Lorry again"
                if library.instructions()
                else "this processor has no AVX2"
            )
    if why is not None or built is None:
        if kernels == "native":
            raise ModelError(f"--kernels native: the compiled step cannot run here: {why}")
        return f"PyTorch's operations; not the compiled step: {why}"
    runner.go_lean(
        LeanModel(
            built,
            loaded,
            runner.cache,
            runner.lora.layers,
            max_tokens=max_tokens,
            max_pairs=max_tokens * PAIRS_PER_TOKEN,
            max_rank=max_rank,
            num_threads=torch.get_num_threads(),
        )
    )
    threads = torch.get_num_threads()
    return f"the compiled step, {library.instructions()}, {threads} threads"
