"""How a request is said to each kind of server, and how its answer is read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorry.bench.answer import BenchAnswer
from lorry.bench.workload import Ask


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer, taken apart."""

    times: tuple[float, ...]
    """When each event with something generated in it came."""
    tokens: int
    text: str
    ids: tuple[int, ...] | None = None
    """Where the server tells them."""
    problem: str | None = None
    """What went wrong, in one line."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in a prefix cache. 0 for both if the server does not report them."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; as it stands, greedily."""

    temperature: float = 0.0
    top_p: float = 1.0

    def fields(self, ask: Ask) -> dict[str, float]:
        """What every API calls so; empty where it is greedy. A request's seed is always the
        same: asked again it must be answered again."""
        if self.temperature == 0:
            return {}
        seed = zlib.crc32(ask.prompt.encode())
        return {"temperature": self.temperature, "top_p": self.top_p, "seed": seed}


GREEDY = Sampling()


class Target(Protocol):
    """One API. `adapters` are the names (or places) of the row's adapters, by their index."""

    @property
    def api(self) -> str: ...

    @property
    def path(self) -> str: ...

    def body(self, ask: Ask) -> bytes: ...

    def read(self, answer: BenchAnswer) -> Reading: ...


class Refused(Exception):
    """The server says in its stream that it cannot go on."""


@dataclass(frozen=True, slots=True)
class LorryTarget:
    """`/generate` of a Lorry server: one event a token."""

    adapters: Sequence[str]
    sampling: Sampling = GREEDY
    api: str = "lorry"
    path: str = "/generate"

    def body(self, ask: Ask) -> bytes:
        chosen: dict[str, Any] | None = None
        if ask.adapter is not None:
            chosen = {"name": self.adapters[ask.adapter], "scale": ask.scale}
        parameters = {
            "max_new_tokens": ask.new_tokens,
            "ignore_eos_token": True,
            **self.sampling.fields(ask),
        }
        return _json(inputs=ask.prompt, adapter=chosen, parameters=parameters, stream=True)

    def read(self, answer: BenchAnswer) -> Reading:
        times, ids, text = [], [], ""
        details: dict[str, Any] = {}
        try:
            for time, event in _events(answer):
                times.append(time)
                ids.append(event["token"]["id"])
                text = event["generated_text"] or text
                details = event.get("details") or details
        except Refused as error:
            return Reading(tuple(times), len(ids), text, tuple(ids), str(error))
        counts = (details.get("prompt_tokens", 0), details.get("cached_tokens", 0))
        return Reading(tuple(times), len(ids), text, tuple(ids), None, *counts)


@dataclass(frozen=True, slots=True)
class OpenAITarget:
    """`/v1/completions`, with vLLM's `ignore_eos`. An event may hold several tokens."""

    model: str
    adapters: Sequence[str]
    sampling: Sampling = GREEDY
    api: str = "openai"
    path: str = "/v1/completions"

    def body(self, ask: Ask) -> bytes:
        assert ask.scale == 1.0, "this API has no scales"
        return _json(
            model=self.model if ask.adapter is None else self.adapters[ask.adapter],
            prompt=ask.prompt,
            max_tokens=ask.new_tokens,
            ignore_eos=True,
            stream=True,
            stream_options={"include_usage": True},
            **{"temperature": 0, **self.sampling.fields(ask)},
        )

    def read(self, answer: BenchAnswer) -> Reading:
        times: list[float] = []
        text, usage = "", {}
        try:
            for time, event in _events(answer):
                if event.get("choices"):
                    text += event["choices"][0].get("text") or ""
                    # The last chunk of some servers says only why it ended.
                    if event["choices"][0].get("text") or not times:
                        times.append(time)
                if event.get("usage"):
                    usage = event["usage"]
        except Refused as error:
            return Reading(tuple(times), len(times), text, problem=str(error))
        details = usage.get("prompt_tokens_details") or {}
        return Reading(
            tuple(times),
            usage.get("completion_tokens", len(times)),
            text,
            prompt_tokens=usage.get("prompt_tokens", 0),
            cached_tokens=details.get("cached_tokens") or 0,
        )


@dataclass(frozen=True, slots=True)
class LlamaCppTarget:
    """`/completion` of llama.cpp's server. Its adapters have numbers, given at its start."""

    adapters: Sequence[int]
    """The numbers of the ones to use."""
    all_adapters: Sequence[int]
    sampling: Sampling = GREEDY
    cache_prompt: bool = False
    """True if prompts share something. Otherwise it would only find prompts of the warm-up."""
    api: str = "llamacpp"
    path: str = "/completion"

    def body(self, ask: Ask) -> bytes:
        sampled = self.sampling.fields(ask)
        # What is not in the list is off only where there is a list with something in it.
        scales = dict.fromkeys(self.all_adapters, 0.0)
        if ask.adapter is not None:
            scales[self.adapters[ask.adapter]] = ask.scale
        return _json(
            prompt=ask.prompt,
            n_predict=ask.new_tokens,
            ignore_eos=True,
            cache_prompt=self.cache_prompt,
            stream=True,
            lora=[{"id": number, "scale": scale} for number, scale in scales.items()],
            # Its own defaults would cut the distribution further.
            **({"top_k": 0, "min_p": 0, **sampled} if sampled else {"temperature": 0}),
        )

    def read(self, answer: BenchAnswer) -> Reading:
        times: list[float] = []
        text, last = "", {}
        try:
            for time, event in _events(answer):
                if event.get("content"):
                    times.append(time)
                    text += event["content"]
                if event.get("stop"):
                    last = event
        except Refused as error:
            return Reading(tuple(times), len(times), text, problem=str(error))
        computed = (last.get("timings") or {}).get("prompt_n")
        prompt = last.get("tokens_evaluated", 0)
        return Reading(
            tuple(times),
            last.get("tokens_predicted", len(times)),
            text,
            prompt_tokens=prompt,
            cached_tokens=0 if computed is None else max(0, prompt - computed),
        )


def read(target: Target, answer: BenchAnswer, wanted: int) -> Reading:
    """`target.read`, with everything that can be wrong with the answer as its `problem`."""
    if answer.status != 200:
        return Reading((), 0, "", problem=answer.reason())
    try:
        reading = target.read(answer)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"an answer that is not this API's: {type(error).__name__} {error}"
        return Reading((), 0, "", problem=problem)
    if reading.problem is None and reading.tokens != wanted:
        problem = f"{reading.tokens} tokens where {wanted} were asked for"
        return Reading(reading.times, reading.tokens, reading.text, reading.ids, problem)
    if reading.problem is None and not reading.times:
        return Reading((), reading.tokens, reading.text, problem="an answer with no text in it")
    return reading


def _json(**fields: object) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _events(answer: BenchAnswer) -> list[tuple[float, dict[str, Any]]]:
    """Raises Refused at an event that is an error."""
    found = []
    for time, data in answer.events():
        if data == b"[DONE]":
            break
        event = json.loads(data)
        if not isinstance(event, dict):
            raise TypeError(f"an event that is a {type(event).__name__}")
        if event.get("error"):
            error = event["error"]
            raise Refused(str(error.get("message") if isinstance(error, dict) else error))
        found.append((time, event))
    return found
