"""The same sequences twice: together through an executor, and each alone through
transformers' own forward pass.

How far two right answers may lie apart depends on what rounds on the way: in fp32 hardly
at all, where activations are rounded to a few bits a difference in the last digit of a sum
can flip a code, and bitsandbytes' int8 with a threshold chooses columns by all rows of a
product. So transformers' forward pass is run again, with the embeddings moved by one last
digit and with another sequence beside this one. What that does to its answers is the measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorry.core import Batch, Row, Sample, SamplingParams
from lorry.model.base_loader import LoadedModel
from lorry.model.executor import Executor
from lorry.model.kv_cache import step_of
from lorry.model.padded import UNSUITED
from lorry.model.plain_attention import plain
from lorry.model.quantize import rounds_activations

SINGLES = 2
"""Tokens of each sequence that come one at a time, as an answer's do."""

TOLERANCE = 1e-3
"""Of a log-probability, where nothing is rounded to less than fp32."""

ROUNDED = 0.03
"""The same where activations are rounded to 8 bits, or to bfloat16. A code flips so seldom that
moved embeddings may show none: 0.012 seen on tiny models, and 0.4 where something is wrong."""

NOISES = 3
"""How often the embeddings are moved."""

UNSTEADY = 0.3
"""How far another sequence in the batch may move transformers' own answers, on average: what is
farther is no rounding, and nothing could be found beside it."""

FARTHEST, MEAN = 4, 2
"""How many times as far off as that a right answer may be, and all of them on average.
Seen: once at most, and 3.3 times where a code of 8 bits decides on an expert."""


@dataclass(slots=True)
class Noise:
    """How far transformers' own answers to the first sequence of a trial go, token by token."""

    moved: list[float] = field(default_factory=list)
    """With moved embeddings, at most. Empty: it was not measured."""
    beside: list[float] = field(default_factory=list)
    """Beside another sequence."""

    def tensors(self) -> tuple[Tensor, Tensor]:
        return _joined([self.moved]), _joined([self.beside])


@dataclass(frozen=True, slots=True)
class Trial:
    lengths: tuple[int, ...]
    """Tokens of the sequences."""
    piece: int
    """Tokens of a sequence that a step reads, the last ones excepted."""

    def blocks_needed(self, block_size: int) -> int:
        return sum(-(-length // block_size) for length in self.lengths)

    def problem(
        self,
        executor: Executor,
        loaded: LoadedModel,
        alone: Sequence[Sequence[float]] | None = None,
        noise: Noise | None = None,
    ) -> str | None:
        """What is wrong with the answers, if anything. `alone`: those of `alone`,
        where they are known. `noise`: what `noise` returns, where it is known; if it is empty
        and is needed, it is filled.

        Writes to the first blocks of its cache.
        """
        sequences = self.sequences(loaded)
        try:
            have = _joined(self.together(executor, sequences))
        except torch.OutOfMemoryError:
            raise
        except UNSUITED as error:
            return f"sequences that run together fail ({str(error).strip() or repr(error)})"
        off = (have - _joined(alone or self.alone(loaded, sequences))).abs()
        rounded = (
            loaded.quantization == "int8"
            or rounds_activations(loaded.model)
            or not executor.paths.cache.dtype.is_floating_point
        )
        least = ROUNDED if rounded else TOLERANCE
        if float(off.max()) <= least:
            return None
        known = noise or Noise()
        if not known.moved:
            found = self.noise(executor, loaded)
            known.moved, known.beside = found.moved, found.beside
        moved, beside = known.tensors()
        if not float(beside.mean()) <= UNSTEADY:
            return (
                "its tokens depend on more than those before them: transformers' own answers "
                f"differ by {float(beside.mean()):.3g} on average beside another sequence"
            )
        steps = torch.maximum(moved, beside)
        # `not <=` rather than `>`: a NaN is a difference.
        far = not float(off.max()) <= least + FARTHEST * float(steps.max())
        # One flipped code moves one answer; a sequence that sees another moves most of them.
        shifted = not float(off.mean()) <= TOLERANCE + MEAN * float(steps.mean())
        if far or shifted:
            return (
                "sequences that run together differ from the same sequences alone by "
                f"{float(off.max()):.3g} in log-probability"
            )
        return None

    def sequences(self, loaded: LoadedModel) -> list[list[int]]:
        vocabulary = loaded.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(1)
        return [
            torch.randint(0, vocabulary, (length,), generator=generator).tolist()
            for length in self.lengths
        ]

    def alone(
        self,
        loaded: LoadedModel,
        sequences: Sequence[Sequence[int]],
        *,
        moved: tuple[float, torch.Generator] | None = None,
        beside: Sequence[int] | None = None,
    ) -> list[list[float]]:
        """Log-probabilities of every token but the first, by the attention that transformers
        chooses. `moved`: the embeddings, by about such a fraction of each number; `beside`:
        a sequence of the same length, in the same batch."""
        embeddings = loaded.model.get_input_embeddings()
        shaken = _moved(embeddings, *moved) if moved else nullcontext()
        with torch.inference_mode(), plain(loaded.model), shaken:
            return [_scored(loaded, ids, beside) for ids in sequences]

    def together(self, executor: Executor, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """The same through the executor: each begins a step after the one before it and is read
        in pieces. What each ends with is only asked about."""
        free = iter(range(executor.paths.cache.num_blocks))
        blocks = [
            [next(free) for _ in range(-(-len(ids) // executor.paths.cache.block_size))]
            for ids in sequences
        ]
        found: list[list[float]] = [[] for _ in sequences]
        for step in self._steps():
            rows = []
            for index, start, stop in step:
                ids = list(sequences[index])
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
            for (index, _, _), result in zip(step, executor.run(Batch(tuple(rows))), strict=True):
                found[index].extend(entry.logprob for entry in result.prompt)
        return found

    def _steps(self) -> Iterator[list[tuple[int, int, int]]]:
        """(sequence, first token, one past the last) of each row of a step."""
        done = [0] * len(self.lengths)
        begun = 0
        while any(at < length - 1 for at, length in zip(done, self.lengths, strict=True)):
            begun += 1
            step = []
            for index, length in enumerate(self.lengths[:begun]):
                left = length - 1 - done[index]
                if left > 0:
                    count = min(self.piece, left - SINGLES) if left > SINGLES else 1
                    step.append((index, done[index], done[index] + count))
                    done[index] += count
            yield step

    def noise(self, executor: Executor, loaded: LoadedModel) -> Noise:
        digit = max(torch.finfo(loaded.dtype).eps, step_of(executor.paths.cache.dtype))
        first = self.sequences(loaded)[:1]
        alone = _joined(self.alone(loaded, first))
        generator = torch.Generator(loaded.device).manual_seed(1)
        moved = [self.alone(loaded, first, moved=(digit, generator)) for _ in range(NOISES)]
        beside = self.alone(loaded, first, beside=first[0][::-1])
        farthest = torch.stack([(_joined(one) - alone).abs() for one in moved]).amax(0)
        return Noise(farthest.tolist(), (_joined(beside) - alone).abs().tolist())


def _joined(answers: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for answer in answers for value in answer], dtype=torch.float64)


def _scored(loaded: LoadedModel, ids: Sequence[int], beside: Sequence[int] | None) -> list[float]:
    rows = [ids] if beside is None else [ids, beside]
    ids_BT = torch.tensor([list(row) for row in rows], device=loaded.device)
    logits_TV = loaded.model(input_ids=ids_BT, use_cache=False).logits[0].float()
    logprobs_TV = logits_TV.log_softmax(-1)
    return [float(logprobs_TV[i, token]) for i, token in enumerate(ids[1:])]


@contextmanager
def _moved(embeddings: nn.Module, digit: float, generator: torch.Generator) -> Iterator[None]:
    def move(_module: nn.Module, _inputs: object, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return x * (1 + digit * noise)

    handle = embeddings.register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()
