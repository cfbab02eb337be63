"""At start-up: do sequences that run together get the answers they would get alone?

A list of architectures that work would be wrong the day transformers changes one.
So the model is asked: two sequences run together, in chunks and token by token
through our cache, and each alone through transformers' own attention. Where the two
differ in one packed row they are padded from then on, and where they differ padded
the model is refused by name instead of being served wrong.
"""

from __future__ import annotations

import torch

from lorry.core import Batch, Row, Sample, SamplingParams
from lorry.errors import ModelError, UnsupportedModel
from lorry.model.loader import LoadedModel
from lorry.model.padded import UNSUITED
from lorry.model.quiet import quiet
from lorry.model.runner import Runner

LENGTHS = (13, 6)
"""Tokens of the two sequences."""

TOLERANCE = 1e-3
ROUNDED_TOLERANCE = 0.5
"""Largest difference of a log-probability, in fp32 and where activations are rounded to
fewer bits: there a difference in the last digit of a sum can flip a code (0.2 seen).
What this check is to find (a sequence that sees another, wrong positions, a dropped
argument) moves them by more than 1."""


def blocks_needed(block_size: int) -> int:
    """KV blocks that the check fills, whatever the server's limits are."""
    return sum(-(-length // block_size) for length in LENGTHS)


def check(runner: Runner, loaded: LoadedModel) -> None:
    """Run before the first request: it writes to the cache's first blocks, and may give the
    runner another cache.

    Raises:
        UnsupportedModel: together and alone differ on every path that there is.
    """
    sequences = _sequences(loaded)
    expected = [_alone(loaded, ids) for ids in sequences]
    problem = _difference(runner, loaded, sequences, expected)
    if problem is None:
        return
    if runner.path == "torch" and runner.unpackable is None:
        runner.go_padded(loaded, problem)
        if runner.cache.num_blocks < blocks_needed(runner.cache.block_size):
            raise ModelError(
                "--kv-cache-memory is too small for this model's padded rows; give more"
            )
        problem = _difference(runner, loaded, sequences, expected)
        if problem is None:
            return
    if runner.unpackable is not None:
        problem = f"packed in one row, {runner.unpackable}; padded, {problem}"
    raise UnsupportedModel(f"{loaded.layout.architecture} is not served: {problem}")


def _difference(
    runner: Runner, loaded: LoadedModel, sequences: list[list[int]], expected: list[list[float]]
) -> str | None:
    """What is wrong with the runner's answers, if anything."""
    try:
        got = _together(runner, sequences)
    except torch.OutOfMemoryError:
        raise
    except UNSUITED as error:
        return f"sequences that run together fail ({str(error).strip() or repr(error)})"
    exact = loaded.quantization == "none" and loaded.dtype is torch.float32
    tolerance = TOLERANCE if exact else ROUNDED_TOLERANCE
    for ids, want, have in zip(sequences, expected, got, strict=True):
        assert len(want) == len(have) == len(ids) - 1
        worst = max(abs(w - h) for w, h in zip(want, have, strict=True))
        # `not <=` rather than `>`: a NaN is a difference.
        if not worst <= tolerance:
            return (
                "sequences that run together differ from the same sequences alone by "
                f"{worst:.3g} in log-probability"
            )
    return None


def _sequences(loaded: LoadedModel) -> list[list[int]]:
    vocabulary = loaded.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS
    ]


def _alone(loaded: LoadedModel, ids: list[int]) -> list[float]:
    """Log-probability of every token but the first, through transformers' eager attention."""
    model = loaded.model
    ours = model.config._attn_implementation
    with quiet():
        model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            ids_1T = torch.tensor([ids], device=loaded.device)
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float()
    finally:
        with quiet():
            model.set_attn_implementation(ours)
    logprobs_TV = logits_TV.log_softmax(-1)
    return [float(logprobs_TV[i, token]) for i, token in enumerate(ids[1:])]


def _together(runner: Runner, sequences: list[list[int]]) -> list[list[float]]:
    """The same through the runner: half the first sequence beside nothing, the rest of it
    beside the second, and one token of each as an answer goes on, by itself. What each
    sequence ends with is only asked about."""
    size = runner.cache.block_size
    blocks: list[list[int]] = []
    free = iter(range(runner.cache.num_blocks))
    for ids in sequences:
        blocks.append([next(free) for _ in range(-(-len(ids) // size))])
    first, second = sequences
    half = len(first) // 2
    steps = [
        [(0, 0, half)],
        [(0, half, len(first) - 2), (1, 0, len(second) - 2)],
        [(1, len(second) - 2, len(second) - 1), (0, len(first) - 2, len(first) - 1)],
    ]
    found: list[list[float]] = [[] for _ in sequences]
    for step in steps:
        rows = []
        for index, start, stop in step:
            ids = sequences[index]
            rows.append(
                Row(
                    request_id=str(index),
                    token_ids=ids[start:stop],
                    start=start,
                    blocks=blocks[index],
                    adapters=(),
                    sample=Sample(SamplingParams(max_new_tokens=1), ids, (), None),
                    prompt_targets=ids[start + 1 : stop + 1],
                )
            )
        for (index, _, _), result in zip(step, runner.run(Batch(tuple(rows))), strict=True):
            found[index].extend(entry.logprob for entry in result.prompt)
    return found
