"""Steps of the model with no server around them: what the profile and the kernels' figures run.

A step here can be run over and over: its rows always write the same cells of the cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorry.bench import random_adapters as made
from lorry.core import Batch, Row, Sample, SamplingParams, SlotUse
from lorry.model import paths
from lorry.model.base_loader import load
from lorry.settings import Settings
from lorry_adapters.lora import weights

BLOCK_SIZE = 16
_PARAMS = SamplingParams(max_new_tokens=1)

Run = Callable[[], object]


class Steps:
    """A base, `slots` adapters of `rank` on it, and steps of any shape."""

    def __init__(
        self,
        folder: Path,
        *,
        kernels: str,
        slots: int,
        rank: int,
        max_tokens: int = 512,
        cells: int = 16384,
        quantization: str = "int8",
        kv_cache: str = "auto",
    ) -> None:
        """`cells`: tokens that the cache holds. `kv_cache`: as `--kv-cache-dtype`. Raises
        ModelError."""
        settings = Settings(
            model=str(folder),
            home=folder,
            device="cpu",
            dtype="float32",
            quantize=quantization,
        )
        self.loaded = load(settings, lambda _: None, replacer=paths.replacer(kernels))
        sizes = paths.Sizes(
            kv_blocks=cells // BLOCK_SIZE,
            block_size=BLOCK_SIZE,
            max_slots=max(1, slots),
            max_rank=max(1, rank),
            max_tokens=max_tokens,
        )
        found = paths.first_pass(self.loaded)
        chosen = paths.choose(kernels, self.loaded, found, block_size=BLOCK_SIZE, kv_cache=kv_cache)
        self.chosen = chosen.said
        self.executor = paths.build(self.loaded, found, chosen, sizes)
        paths.leave_cores(self.executor)
        placement = self.executor.placement
        shapes = made.shapes_of(folder)
        with tempfile.TemporaryDirectory(prefix="lorry-bench-") as scratch:
            for index in range(slots):
                made.write(Path(scratch), shapes, index, rank, base="bench")
                adapter = weights.load(Path(scratch), f"sha256:{index}", self.loaded.layout)
                placement.place(index + 1, placement.prepare(adapter))

    def close(self) -> None:
        self.executor.paths.close()

    def decode(self, rows: int, context: int, adapters: int = 0) -> Run:
        """A token for each of `rows`, each with `context` tokens before it; the rows take
        turns among the first `adapters` adapters."""
        blocks = -(-(context + 1) // BLOCK_SIZE)
        return self._step(
            Row(
                request_id=str(row),
                token_ids=[5 + row],
                start=context,
                blocks=range(row * blocks, (row + 1) * blocks),
                adapters=_uses(row, adapters),
                sample=Sample(_PARAMS, [5], [], None),
            )
            for row in range(rows)
        )

    def prompt(self, tokens: int, adapters: int = 0, pieces: int = 1, start: int = 0) -> Run:
        """`tokens` of prompt, behind `start` others, read at once, and a first token; in so many
        `pieces` they are prompts of their own, of which only the last is answered."""
        length = tokens // pieces
        blocks = -(-(start + length) // BLOCK_SIZE)
        ids = [5 + token % 256 for token in range(length)]
        return self._step(
            Row(
                request_id=str(piece),
                token_ids=ids,
                start=start,
                blocks=range(piece * blocks, (piece + 1) * blocks),
                adapters=_uses(piece, adapters),
                sample=Sample(_PARAMS, ids, [], None) if piece == pieces - 1 else None,
            )
            for piece in range(pieces)
        )

    def _step(self, rows: Iterable[Row]) -> Run:
        batch = Batch(tuple(rows))
        return lambda: self.executor.run(batch)


def _uses(row: int, adapters: int) -> tuple[SlotUse, ...]:
    return (SlotUse(1 + row % adapters, 1.0),) if adapters else ()


def save_random_base(folder: Path, *, hidden: int, inner: int, heads: int, kv_heads: int) -> None:
    """Two layers of a Llama with heads of 64, and a vocabulary next to nothing."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=32768,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(word): word for word in range(512)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0").save_pretrained(folder)


LAYERS = 2
"""Of a random base."""
