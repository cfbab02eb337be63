"""Requests for a vector per prompt: labels or embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from lorry.api.journal import ran
from lorry.api.prompt_list import Prompt
from lorry.api.spending import spend
from lorry.api.submission import failure, naming, pinned
from lorry.core import Caching, FinishReason, Pooling, SamplingParams
from lorry.engine.client import EngineClient, Generation
from lorry.engine.places import Place
from lorry.metrics import Metrics, RequestMeter
from lorry_adapters.registry.record import AdapterChoice, AdapterRef

MAX_INPUTS = 2048
"""The most prompts in one request: OpenAI's limit, up to which its clients fill a request."""

_TURN = 64
"""Prompts that are given to the engine before other requests have a turn on the event loop."""


class VectorsUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Vectors:
    """The results of one request."""

    refs: tuple[AdapterRef, ...]
    vectors: list[tuple[float, ...]]
    """In the order of the prompts."""
    prompt_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """Return the fields of `VectorsUsage`; no token is new."""
        return {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}


class Pooled:
    """Sends every prompt of a request to the engine and waits for all of them."""

    def __init__(self, client: EngineClient, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics

    def room(self, choices: Sequence[AdapterChoice]) -> int:
        """Return the tokens that a prompt can have."""
        return self._client.room(choices)

    async def ask(
        self,
        prompts: Sequence[Prompt],
        choices: Sequence[AdapterChoice],
        pooling: Pooling,
        place: Place,
        *,
        param: str,
        caching: Caching,
    ) -> Vectors:
        """Return the vectors. `param` is the prompts' field. The first error ends the others.

        All prompts together take one place: a list is as long as its client likes, whatever
        `--max-queue` is.
        """
        place.share()
        asked: list[tuple[Generation, RequestMeter]] = []
        tokens = sum(len(prompt.ids) for prompt in prompts)
        try:
            for prompt in prompts:
                if asked:
                    choices = pinned(choices, asked[0][0].refs)
                generation = await self._submit(prompt, choices, pooling, place, param, caching)
                meter = self._metrics.accepted(
                    generation.refs, prompt_tokens=len(prompt.ids), max_tokens=0
                )
                asked.append((generation, meter))
                if len(asked) % _TURN == 0:
                    await asyncio.sleep(0)
            meters = [meter for _, meter in asked]
            ran(asked[0][0].refs, tokens, meters)
            spend(tokens, meters)
            vectors = await asyncio.gather(*(_vector(*one) for one in asked))
        finally:
            for generation, meter in asked:
                meter.finish("abort")
                await generation.aclose()
        return Vectors(asked[0][0].refs, vectors, tokens)

    async def _submit(
        self,
        prompt: Prompt,
        choices: Sequence[AdapterChoice],
        pooling: Pooling,
        place: Place,
        param: str,
        caching: Caching,
    ) -> Generation:
        params = SamplingParams(max_new_tokens=0)
        with naming(param):
            return await self._client.submit(
                prompt.ids, params, choices, None, pooling, place, caching
            )


async def _vector(generation: Generation, meter: RequestMeter) -> tuple[float, ...]:
    event = await anext(generation)
    if event.finish is FinishReason.STOP:
        if event.cached is not None:
            meter.searched(event.cached)
        meter.vector(event.started)
        meter.finish("stop")
        return event.vector
    meter.finish("error")
    raise failure(event, generation.refs)
