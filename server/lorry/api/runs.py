"""Requests on their way through the engine, with their text, stop strings and metrics.

A `Run` is one answer in progress. Several (`n`, `best_of`, a list of prompts) start and end
together: an error in one cancels the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lorry.api.journal import ran
from lorry.api.prompts import Prompts
from lorry.api.spending import spend
from lorry.api.submission import failure, naming, pinned
from lorry.constraint import Constraint
from lorry.core import SHARED, Caching, FinishReason, SamplingParams, TokenEvent, TokenLogprob
from lorry.engine.client import EngineClient, Generation
from lorry.engine.places import Place
from lorry.engine.text import Detokenizer, StopStrings
from lorry.metrics import Metrics, RequestMeter
from lorry_adapters.registry.record import AdapterChoice, AdapterRef

_FLOOR = -9999.0
"""JSON has no infinity."""


class Ending(StrEnum):
    """Why an answer ended, in vLLM's terms for metrics."""

    EOS = "eos"
    LENGTH = "length"
    STOP_STRING = "stop_string"


@dataclass(slots=True)
class Step:
    """One token and the text that it made certain."""

    token: TokenLogprob
    text: str
    """May be empty (half a character, a special token) and may belong to earlier tokens."""
    special: bool
    top: tuple[TokenLogprob, ...]
    prompt: tuple[TokenLogprob | None, ...]
    """In the first token, if prompt logprobs were requested."""
    ending: Ending | None
    stop: str | None = None
    """The stop string that ended the answer."""
    own_end: int | None = None
    """The token that ended it, if the request named it."""

    @property
    def reason(self) -> str | int | None:
        """vLLM's `stop_reason`: the request's stop string or token that ended the answer."""
        return self.own_end if self.stop is None else self.stop


@dataclass(slots=True)
class Answer:
    """A complete answer."""

    steps: list[Step] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def ending(self) -> Ending:
        ending = self.steps[-1].ending
        assert ending is not None
        return ending

    @property
    def reason(self) -> str | int | None:
        return self.steps[-1].reason

    @property
    def prompt(self) -> tuple[TokenLogprob | None, ...]:
        return self.steps[0].prompt

    @property
    def mean_logprob(self) -> float:
        """The score that `best_of` compares."""
        return sum(logprob_of(step.token) for step in self.steps) / len(self.steps)


@dataclass(frozen=True, slots=True)
class Job:
    """The task of one run."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    stops: tuple[str, ...]
    keep_stop: bool
    """TGI keeps the stop string in the text, OpenAI drops it."""
    constraint: Constraint | None = None
    visible: frozenset[int] = frozenset()
    """Special tokens that are text in this answer."""
    prompts: Prompts | None = None
    """Its adapter's own; None for the base's."""
    keep_end: bool = False
    """True if the token that ends the answer is shown, if it is visible."""
    unstopped: int = 0
    """Stop strings are searched for behind this many tokens."""
    own_ends: frozenset[int] = frozenset()
    """The end tokens that the request named and that are not the base's."""
    caching: Caching = SHARED
    speculative: bool | None = None


class Run:
    """One answer in progress. It must be closed; closing one that ended does nothing."""

    def __init__(
        self, generation: Generation, job: Job, prompts: Prompts, meter: RequestMeter
    ) -> None:
        self.refs: tuple[AdapterRef, ...] = generation.refs
        self.prompt_tokens = len(job.prompt_ids)
        self.cached_tokens = 0
        """Tokens of the prompt found in the prefix cache; known from the first token on."""
        self._generation = generation
        # The last event, and how many of its tokens have been returned.
        self._event = TokenEvent("")
        self._taken = 0
        self._eos = job.params.eos_token_ids
        self._prompts = prompts
        self.meter = meter
        self._keep_end = job.keep_end
        self._unstopped = job.unstopped
        self._own_ends = job.own_ends
        self._special_ids = prompts.special_ids - job.visible
        self._text = Detokenizer(
            prompts.decode, self._special_ids, job.prompt_ids, whole=prompts.whole
        )
        marked = prompts.with_special(job.stops, self._eos)
        self._stops = StopStrings(job.stops, keep=job.keep_stop, marked=marked)

    @property
    def drafting(self) -> dict[str, int]:
        """The tokens drafted so far, and those of them that were right, as `/generate` tells."""
        return {"draft_tokens": self.meter.drafts, "accepted_tokens": self.meter.accepted}

    async def step(self) -> Step:
        """Return the next token; nothing follows one with an ending. Raises the error that ended
        the request otherwise."""
        if self._taken == len(self._event.drawn):
            self._event, self._taken = await anext(self._generation), 0
        event = self._event
        if not event.drawn:
            raise self._failure(event)
        if event.cached is not None and self._taken == 0:
            self.cached_tokens = event.cached
            self.meter.searched(event.cached)
        if event.drafts and self._taken == 0:
            self.meter.drafted(event.drafts, len(event.drawn) - 1)
        self.meter.token(event.started)
        step = self._next_of(event)
        if step.ending is not None:
            self.meter.finish("length" if step.ending is Ending.LENGTH else "stop")
            # Only this side sees a stop string, so it must cancel the request.
            await self._generation.aclose()
        elif event.finish is not None and self._taken == len(event.drawn):
            raise self._failure(event)
        return step

    async def answer(self) -> Answer:
        answer = Answer()
        while True:
            step = await self.step()
            answer.steps.append(step)
            if step.ending is not None:
                return answer

    async def close(self) -> None:
        self.meter.finish("abort")
        await self._generation.aclose()

    def _next_of(self, event: TokenEvent) -> Step:
        drawn = event.drawn[self._taken]
        prompt = () if self._taken else event.prompt
        self._taken += 1
        token, top = drawn.token, drawn.top
        finish = event.finish if self._taken == len(event.drawn) else None
        ends = token.token_id in self._eos
        hidden = ends and not self._keep_end
        special = hidden or token.token_id in self._special_ids
        mark = self._prompts.name_of(token.token_id) if special else ""
        text = "" if hidden else self._text.push(token.token_id)
        ending = None
        if finish is FinishReason.STOP:
            ending = Ending.EOS
        elif finish is FinishReason.LENGTH:
            ending = Ending.LENGTH
        own_end = None
        if ending is Ending.EOS and token.token_id in self._own_ends:
            own_end = token.token_id
        if ending is not None:
            text += self._text.flush()
        if self._unstopped > 0:
            self._unstopped -= 1
            return Step(token, text, special, top, prompt, ending, None, own_end)
        shown = self._stops.push(text, mark)
        if self._stops.hit is not None:
            # An end token that completes a stop string still counts as the end.
            ending = ending if ends else Ending.STOP_STRING
        elif ending is not None:
            shown += self._stops.flush()
        hit = self._stops.hit
        return Step(token, shown, special, top, prompt, ending, hit, own_end)

    def _failure(self, event: TokenEvent) -> Exception:
        self.meter.finish("error")
        return failure(event, self.refs)


class Runs:
    """Starts runs for the routes."""

    def __init__(self, client: EngineClient, prompts: Prompts, metrics: Metrics) -> None:
        self._client = client
        self._prompts = prompts
        self._metrics = metrics

    def room(self, prompt_ids: Sequence[int], choices: Sequence[AdapterChoice]) -> int:
        """Return the tokens that an answer to this prompt can have. The result is at least 1, so
        that the engine refuses a prompt that is too long by itself, with its own numbers."""
        return max(1, self._client.room(choices) - len(prompt_ids))

    async def start(
        self,
        jobs: Sequence[Job],
        choices: Sequence[AdapterChoice],
        place: Place,
        *,
        param: str,
        each: int,
    ) -> list[Run]:
        """Start all of `jobs` with the same adapters, or none. `param` is the prompt's field,
        `each` the answers per prompt."""
        runs: list[Run] = []
        try:
            for job in jobs:
                if runs:
                    choices = pinned(choices, runs[0].refs)
                runs.append(await self._start(job, choices, place, param))
        except BaseException:
            await close_all(runs)
            raise
        self._metrics.answers(each)
        prompt_tokens, meters = (
            sum(run.prompt_tokens for run in runs[::each]),
            [r.meter for r in runs],
        )
        ran(runs[0].refs, prompt_tokens, meters)
        spend(prompt_tokens, meters)
        return runs

    async def _start(
        self, job: Job, choices: Sequence[AdapterChoice], place: Place, param: str
    ) -> Run:
        with naming(param):
            generation = await self._client.submit(
                job.prompt_ids,
                job.params,
                choices,
                job.constraint,
                place=place,
                caching=job.caching,
                speculative=job.speculative,
            )
        meter = self._metrics.accepted(
            generation.refs,
            prompt_tokens=len(job.prompt_ids),
            max_tokens=job.params.max_new_tokens,
        )
        return Run(generation, job, job.prompts or self._prompts, meter)


async def answers(runs: Sequence[Run]) -> list[Answer]:
    """Return all answers in order; the first error cancels the rest."""
    tasks = [asyncio.ensure_future(run.answer()) for run in runs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close_all(runs)


class MergedSteps:
    """The steps of several runs as they come, each with the index of its run.

    It uses no generators: every token of a stream passes here, and each would add to its time.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._open = len(runs)
        self._queue: asyncio.Queue[tuple[int, Step | BaseException]] = asyncio.Queue()
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def over(self) -> bool:
        """True after the last step of the last run."""
        return self._open == 0

    async def next(self) -> tuple[int, Step]:
        """Return the next step. Raises the first error of any run."""
        assert not self.over
        if len(self._runs) == 1:
            index, step = 0, await self._runs[0].step()
        else:
            index, step = await self._any()
        if step.ending is not None:
            self._open -= 1
        return index, step

    async def close(self) -> None:
        """Stop listening. The runs' owner must close them."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _any(self) -> tuple[int, Step]:
        if not self._pumps:
            self._pumps = [
                asyncio.ensure_future(self._pump(index, run))
                for index, run in enumerate(self._runs)
            ]
        index, item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return index, item

    async def _pump(self, index: int, run: Run) -> None:
        try:
            while True:
                step = await run.step()
                self._queue.put_nowait((index, step))
                if step.ending is not None:
                    return
        except BaseException as error:
            self._queue.put_nowait((index, error))
            raise


async def close_all(runs: Sequence[Run]) -> None:
    for run in runs:
        await run.close()


def logprob_of(token: TokenLogprob) -> float:
    return max(token.logprob, _FLOOR)
