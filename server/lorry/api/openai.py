"""Shared by OpenAI's routes: selection, sampling, usage, chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lorry.api import sampling
from lorry.api.adapters_used import used
from lorry.api.bounds import ALL_ROOM
from lorry.api.caching import caching_of
from lorry.api.openai_schema import SharedBody, StreamOptions
from lorry.api.prompt_list import kept_of
from lorry.api.prompts import Prompts
from lorry.api.restrictions import rules_of
from lorry.api.runs import Answer, Ending, Job, Run, Runs
from lorry.api.selection import BaseNames, choices_of, choices_of_model, keyed
from lorry.api.sse import DONE, frame
from lorry.api.structure import grammar_asked
from lorry.api.voices import Voice, Voices
from lorry.constraint import Grammar
from lorry.core import SamplingParams
from lorry.errors import InvalidRequest
from lorry.metrics import Metrics
from lorry_adapters.registry.record import AdapterChoice, AdapterRef
from lorry_adapters.registry.registry import Registry

FINISH = {Ending.EOS: "stop", Ending.LENGTH: "length", Ending.STOP_STRING: "stop"}


@dataclass(frozen=True, slots=True)
class OpenAI:
    """The services behind the routes."""

    voice: Voice
    """The base's voice; in the result of `speaking`, the request's."""
    voices: Voices
    runs: Runs
    metrics: Metrics
    registry: Registry
    base: BaseNames
    fingerprint: str
    """`system_fingerprint` of the answers."""
    clip: bool = True
    """If an answer may be longer than the context has room for, it gets the room that is left."""

    @property
    def prompts(self) -> Prompts:
        return self.voice.prompts

    async def speaking(
        self, choices: tuple[AdapterChoice, ...]
    ) -> tuple[OpenAI, tuple[AdapterChoice, ...]]:
        """Return the same with the voice of the chosen adapters, and the choices with fixed
        versions."""
        voice, fixed = await self.voices.of(choices)
        return replace(self, voice=voice), fixed

    def choices(self, body: SharedBody) -> tuple[AdapterChoice, ...]:
        """Like `chosen`."""
        return chosen(body, self.base, self.registry)

    def new_tokens(
        self,
        wanted: int | None,
        prompt_ids: Sequence[int],
        choices: Sequence[AdapterChoice],
        *,
        default: int | None = None,
    ) -> int:
        """Return the tokens that the answer may have. `ALL_ROOM` is all the room in the context.
        `default` is used if `wanted` is None, and is reduced to the room; None means all the room.
        If `clip` is off, the result can be more than the engine accepts."""
        room = self.runs.room(prompt_ids, choices)
        if wanted == ALL_ROOM:
            return room
        if wanted is None:
            return room if default is None else min(default, room)
        return min(wanted, room) if self.clip else wanted

    def kept_of_prompt(
        self, body: SharedBody, choices: Sequence[AdapterChoice], wanted: int | None
    ) -> int | None:
        """Return how many of a prompt's last tokens are kept; None for all. `wanted` are the
        answer's tokens. Raises InvalidRequest."""
        room = self.runs.room((), choices)
        answer = wanted if wanted and 0 < wanted < room else 1
        return kept_of(body.truncate_prompt_tokens, room - answer)

    def params(
        self,
        body: SharedBody,
        *,
        max_new_tokens: int,
        top_logprobs: int = 0,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """Return the sampling parameters. Raises InvalidRequest."""
        own = self.voice.defaults
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=own.get("temperature", 1.0)
            if body.temperature is None
            else body.temperature,
            **sampling.filters_of(body, own),
            seed=sampling.seed_of(body.seed),
            eos_token_ids=self._ends(body),
            logit_bias=sampling.bias_of(body.logit_bias, self.prompts.vocab_size),
            top_logprobs=top_logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def _ends(self, body: SharedBody) -> frozenset[int]:
        return (frozenset() if body.ignore_eos else self.voice.ends) | self._own_ends(body)

    def _own_ends(self, body: SharedBody) -> frozenset[int]:
        return sampling.ids_of(body.stop_token_ids, self.prompts.vocab_size, "stop_token_ids")

    async def jobs(
        self,
        body: SharedBody,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        count: int,
        grammar: Grammar | None = None,
    ) -> list[Job]:
        """Return `count` jobs for one prompt. `grammar` replaces the one in `body`."""
        return await self.jobs_of_all(body, [(prompt_ids, params)], count, grammar)

    async def jobs_of_all(
        self,
        body: SharedBody,
        asked: Sequence[tuple[Sequence[int], SamplingParams]],
        count: int,
        grammar: Grammar | None = None,
    ) -> list[Job]:
        """Like `jobs`, for each prompt of `asked`. The body's long fields are read only once, as
        there may be many prompts."""
        if grammar is None:
            grammar = grammar_asked(body)
        rules = await rules_of(body, [params for _, params in asked], self.prompts)
        stops = sampling.stops_of(body.stop)
        keep = bool(body.include_stop_str_in_output)
        visible = frozenset() if body.skip_special_tokens is not False else self.prompts.special_ids
        own_ends = self._own_ends(body) - (frozenset() if body.ignore_eos else self.voice.ends)
        constraint = self.voice.constraint(grammar, rules)
        return [
            Job(
                prompt_ids,
                sampling.for_answer(params, index),
                stops=stops,
                keep_stop=keep,
                constraint=constraint,
                visible=visible,
                keep_end=keep,
                unstopped=body.min_tokens or 0,
                prompts=self.prompts,
                own_ends=own_ends,
                caching=caching_of(body),
                speculative=body.speculative,
            )
            for prompt_ids, params in asked
            for index in range(count)
        ]

    def envelope(self, prefix: str, kind: str, body: SharedBody) -> dict[str, Any]:
        """Return the start of every answer and every chunk of one request."""
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": body.model or self.base.first,
            "system_fingerprint": self.fingerprint,
        }


class Choosing(Protocol):
    """Fields of a body that select adapters."""

    @property
    def model(self) -> str | None: ...
    @property
    def adapter(self) -> Any: ...
    @property
    def model_fields_set(self) -> set[str]: ...


def chosen(body: Choosing, base: BaseNames, registry: Registry) -> tuple[AdapterChoice, ...]:
    """Return the selected adapters. Raises ModelNotFound for an unknown `model` even if `adapter`
    takes precedence; also InvalidSelection, InvalidScale."""
    of_model = choices_of_model(body.model, base, registry)
    found = choices_of(body.adapter) if "adapter" in body.model_fields_set else of_model
    user = getattr(body, "user", None) or getattr(body, "safety_identifier", None)
    return keyed(found, user, getattr(body, "seed", None))


@dataclass(slots=True)
class Chunks:
    """The chunks of one stream: `adapters` in the first and the last, usage at the end."""

    envelope: dict[str, Any]
    refs: tuple[AdapterRef, ...]
    prompt_tokens: int
    options: StreamOptions
    choices: int
    cached_tokens: Callable[[], int]
    """Counts of the prompts. They are complete once each has its first token."""
    generated: int = 0
    reasoning: int = 0
    """How many of the tokens are reasoning."""
    _begun: bool = False
    _ended: int = 0

    def chunk(self, choice: dict[str, Any], more: Mapping[str, Any] | None = None) -> bytes:
        """`more` are fields beside `choices`."""
        data = {**self.envelope, "choices": [choice], **(more or {})}
        self._ended += choice.get("finish_reason") is not None
        if not self._begun or self._ended == self.choices:
            data["adapters"] = used(self.refs)
        self._begun = True
        if self.options.include_usage:
            data["usage"] = self._usage() if self.options.continuous_usage_stats else None
        return frame(data)

    def end(self) -> bytes:
        if not self.options.include_usage:
            return DONE
        last = {
            **self.envelope,
            "choices": [],
            "usage": self._usage(),
            "adapters": used(self.refs),
        }
        return frame(last) + DONE

    def _usage(self) -> dict[str, Any]:
        cached = self.cached_tokens()
        return usage(self.prompt_tokens, self.generated, self.reasoning, cached=cached)


def stream_options_of(body: SharedBody) -> StreamOptions:
    """Return the options. Raises InvalidRequest."""
    if body.stream_options is None:
        return StreamOptions()
    if not body.stream:
        raise InvalidRequest(
            "stream_options is for streams; leave it out, or set stream", param="stream_options"
        )
    return body.stream_options


def counts_of(body: SharedBody) -> tuple[int, int]:
    """Return the number of answers to give and to make. Raises InvalidRequest."""
    n = body.n or 1
    each = body.best_of or n
    if each < n:
        raise InvalidRequest(
            f"best_of must be at least n: {each} answers are fewer than {n}", param="best_of"
        )
    if each > n and body.stream:
        raise InvalidRequest(
            "best_of above n needs complete answers, so it cannot stream", param="best_of"
        )
    return n, each


def best(made: Sequence[Answer], n: int) -> Sequence[int]:
    """Return the indices of the answers to give: the `n` likeliest, if there are more."""
    every = range(len(made))
    return every if len(made) <= n else sorted(every, key=lambda at: -made[at].mean_logprob)[:n]


def usage(prompt_tokens: int, generated: int, reasoning: int = 0, *, cached: int) -> dict[str, Any]:
    """`cached` counts the prompt's tokens that were found in the prefix cache."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def generated_tokens(made: Sequence[Answer]) -> int:
    return sum(len(answer.steps) for answer in made)


def prompt_tokens(runs: Sequence[Run], each: int) -> int:
    """Return the number of tokens in all prompts; `each` runs share one."""
    return sum(run.prompt_tokens for run in runs[::each])


def cached_tokens(runs: Sequence[Run], each: int) -> int:
    """Return how many of them were found in the prefix cache."""
    return sum(run.cached_tokens for run in runs[::each])
