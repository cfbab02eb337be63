"""`/generate`, `/generate_stream`, `POST /`: the API of TGI's and LoRAX's clients."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lorry.api import sampling
from lorry.api.adapters_used import used
from lorry.api.bodies import read_body, read_one_of
from lorry.api.caching import caching_of
from lorry.api.disconnect import until_gone
from lorry.api.docs import events_of, json_body
from lorry.api.errors import documented, tgi_body
from lorry.api.features import FeatureRows, Features, FeaturesBody, SimilarityBody, asked_at_root
from lorry.api.generate_schema import (
    GenerateAnswer,
    GenerateBody,
    Parameters,
)
from lorry.api.grammars import grammar_of
from lorry.api.merging import merged
from lorry.api.prompts import Prompts
from lorry.api.runs import Answer, Ending, Job, Run, Runs, Step, answers, logprob_of
from lorry.api.selection import choices_of, keyed, one_of
from lorry.api.sse import EventStream, frame, stream
from lorry.api.visit import place_of
from lorry.api.voices import Voices
from lorry.core import SamplingParams, TokenLogprob
from lorry.errors import InvalidRequest, UnsupportedParameter
from lorry.metrics import Metrics
from lorry_adapters.registry.record import AdapterChoice
from lorry_adapters.registry.registry import Registry

DEFAULT_NEW_TOKENS = 100
"""TGI's default, or less if the context has less room."""

_EXAMPLE = {"inputs": "How do I cook rice?", "parameters": {"max_new_tokens": 40}}

_REASONS = {
    Ending.EOS: "eos_token",
    Ending.LENGTH: "length",
    Ending.STOP_STRING: "stop_sequence",
}


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A resolved body."""

    prompt: str
    choices: tuple[AdapterChoice, ...]
    jobs: tuple[Job, ...]
    """One job, or `best_of` jobs."""
    full_text: bool
    details: bool
    prefill: bool
    top: bool
    words: Prompts
    """The tokenizer for the prompt and the answer."""
    merged_of: list[dict[str, Any]] | None = None
    """The parts of the merged adapter in `choices`; None if nothing was merged."""


class Generate:
    """The routes of one server."""

    def __init__(
        self,
        *,
        voices: Voices,
        runs: Runs,
        metrics: Metrics,
        registry: Registry,
        features: Features,
    ) -> None:
        self._registry = registry
        self._features = features
        self._voices = voices
        self._runs = runs
        self._metrics = metrics

    def router(self) -> APIRouter:
        router = APIRouter(tags=["generate"])
        errors = documented(400, 404, 409, 413, 415, 422, 429, 503, 507, tgi=True)
        body = json_body(GenerateBody, _EXAMPLE)
        sse = events_of("StreamEvent")

        def add(path: str, route: Any, model: Any, summary: str) -> None:
            ok: dict[str, Any] = {"content": sse, "description": "An event for each token"}
            if model is not None:
                ok |= {"model": model, "description": "The answer; with `stream`, events"}
            router.add_api_route(
                path,
                route,
                methods=["POST"],
                summary=summary,
                responses={200: ok, **errors},
                openapi_extra=body,
                response_model=None,
            )

        either = list[GenerateAnswer] | list[list[float]] | list[float] | FeatureRows
        add("/", self.compatible, either, "Generate text, or vectors, as TGI's clients expect")
        add("/generate", self.generate, GenerateAnswer, "Generate text")
        add("/generate_stream", self.generate_stream, None, "Generate text as a stream of events")
        return router

    async def generate(self, request: Request) -> Response:
        """One answer to a prompt, by the base or by adapters; with `stream`, events."""
        body = await read_body(request, GenerateBody)
        if body.stream:
            return await self._stream(request, body)
        return JSONResponse(await until_gone(request.receive, self._whole(request, body)))

    async def generate_stream(self, request: Request) -> Response:
        """One event per token; the last one has the whole text."""
        return await self._stream(request, await read_body(request, GenerateBody))

    async def compatible(self, request: Request) -> Response:
        """Like `/generate`, with the answer in a list; or like `/embed`, for fields or inputs that
        only that route has. Clients send both to the bare address."""
        hub = "hf_hub/" in request.headers.get("user-agent", "")
        body = await read_one_of(request, lambda data: asked_at_root(data, hub=hub))
        if isinstance(body, SimilarityBody):
            work: Coroutine[Any, Any, Any] = self._features.similarities(request, body)
        elif isinstance(body, FeaturesBody):
            work = self._features.answer(request, body)
        else:
            assert isinstance(body, GenerateBody)
            if body.stream:
                return await self._stream(request, body)
            return JSONResponse([await until_gone(request.receive, self._whole(request, body))])
        return JSONResponse(await until_gone(request.receive, work))

    async def _whole(self, request: Request, body: GenerateBody) -> dict[str, Any]:
        asked = await self._asked(body)
        runs = await self._runs.start(
            asked.jobs, asked.choices, place_of(request), param="inputs", each=len(asked.jobs)
        )
        made = await answers(runs)
        order = sorted(range(len(made)), key=lambda index: -made[index].mean_logprob)
        best = order[0]
        answer: dict[str, Any] = {
            "generated_text": self._text(asked, made[best]),
            "adapters": _used(asked, runs[0]),
        }
        if asked.details:
            details = self._details(asked, made[best], best)
            details["prompt_tokens"] = runs[0].prompt_tokens
            details["cached_tokens"] = runs[0].cached_tokens
            details |= runs[best].drafting
            details["skipped_tokens"] = 0
            if len(made) > 1:
                details["best_of_sequences"] = [
                    {
                        "generated_text": self._text(asked, made[index]),
                        **self._details(asked, made[index], index),
                    }
                    for index in order[1:]
                ]
            answer["details"] = details
        return answer

    async def _stream(self, request: Request, body: GenerateBody) -> EventStream:
        asked = await until_gone(request.receive, self._asked(body))
        if len(asked.jobs) > 1:
            raise InvalidRequest(
                "parameters.best_of above 1 needs complete answers, so it cannot stream",
                param="best_of",
            )
        if asked.prefill:
            raise InvalidRequest(
                "parameters.decoder_input_details cannot stream; leave out one of the two",
                param="decoder_input_details",
            )
        runs = await self._runs.start(
            asked.jobs, asked.choices, place_of(request), param="inputs", each=len(asked.jobs)
        )
        return await stream(request, runs, GenerateEvents(asked, runs[0]), self._metrics)

    async def _asked(self, body: GenerateBody) -> GenerateRequest:
        """Resolve a body. Raises InvalidRequest, UnsupportedParameter and the adapters' errors."""
        given = body.parameters or Parameters()
        _refuse_unserved(given)
        choices = keyed(choices_of(one_of(body.adapter, given.adapter_id)), body.user, given.seed)
        made = None
        if given.merged_adapters is not None:
            if choices:
                raise InvalidRequest(
                    "parameters.merged_adapters and an adapter are both given; give one of them",
                    param="merged_adapters",
                )
            made = await merged(self._registry, given.merged_adapters, body.user, given.seed)
            choices = (made.choice,)
        voice, choices = await self._voices.of(choices)
        stops = sampling.stops_of(given.stop, param="parameters.stop")
        if given.grammar is not None and given.response_format is not None:
            raise InvalidRequest(
                "parameters.grammar and parameters.response_format mean the same; give one",
                param="grammar",
            )
        grammar = grammar_of(given.grammar, "parameters.grammar") or grammar_of(
            given.response_format, "parameters.response_format"
        )
        temperature = sampling.temperature_of(
            given.temperature, given.do_sample, default=voice.defaults.get("temperature")
        )
        best_of = given.best_of or 1
        if best_of > 1 and temperature == 0:
            raise InvalidRequest(
                "parameters.best_of above 1 needs sampling, as greedy answers are all the same: "
                "give a temperature or do_sample",
                param="best_of",
            )
        ids = await voice.prompts.encode(
            body.inputs,
            param="inputs",
            truncate=given.truncate,
            add_special_tokens=given.add_special_tokens,
        )
        room = self._runs.room(ids, choices)
        params = SamplingParams(
            max_new_tokens=given.max_new_tokens or min(DEFAULT_NEW_TOKENS, room),
            temperature=temperature,
            **sampling.filters_of(given, voice.defaults),
            seed=sampling.seed_of(given.seed),
            eos_token_ids=frozenset() if given.ignore_eos_token else voice.ends,
            top_logprobs=given.top_n_tokens or 0,
            prompt_logprobs=0 if given.decoder_input_details else None,
        )
        constraint = voice.constraint(grammar)
        return GenerateRequest(
            prompt=body.inputs,
            choices=choices,
            merged_of=None if made is None else made.of,
            jobs=tuple(
                Job(
                    ids,
                    sampling.for_answer(params, index),
                    stops,
                    True,
                    constraint,
                    prompts=voice.prompts,
                    caching=caching_of(given),
                    speculative=given.speculative,
                )
                for index in range(best_of)
            ),
            full_text=bool(given.return_full_text),
            details=bool(given.details or given.decoder_input_details),
            prefill=bool(given.decoder_input_details),
            top=bool(given.top_n_tokens),
            words=voice.prompts,
        )

    def _details(self, asked: GenerateRequest, answer: Answer, index: int) -> dict[str, Any]:
        steps = answer.steps
        job = asked.jobs[index]
        details: dict[str, Any] = {
            "finish_reason": _REASONS[answer.ending],
            "generated_tokens": len(steps),
            "seed": sampling.shown_seed(job.params),
            "prefill": [],
            "tokens": [_token(asked.words, step) for step in steps],
        }
        if asked.prefill:
            details["prefill"] = [
                {
                    "id": token_id,
                    "text": asked.words.text_of(token_id),
                    "logprob": None if one is None else logprob_of(one),
                }
                for token_id, one in zip(job.prompt_ids, answer.prompt, strict=True)
            ]
        if asked.top:
            details["top_tokens"] = [
                [_alternative(asked.words, one) for one in step.top] for step in steps
            ]
        return details

    def _text(self, asked: GenerateRequest, answer: Answer) -> str:
        return asked.prompt + answer.text if asked.full_text else answer.text


class GenerateEvents:
    """Makes the frames of one stream."""

    def __init__(self, asked: GenerateRequest, run: Run) -> None:
        self._asked = asked
        self._run = run
        self._index = 0
        self._texts: list[str] = []

    def step(self, _: int, step: Step) -> bytes:
        self._index += 1
        self._texts.append(step.text)
        if self._index > 1 and step.ending is None and not (step.special or self._asked.top):
            return self._plain(step)
        return self._any(step)

    def end(self) -> bytes:
        return b""

    def failed(self, error: Exception) -> bytes:
        return frame(tgi_body(error), space=False)

    def _plain(self, step: Step) -> bytes:
        """Return the same as `_any` for nearly every step, in a tenth of the time."""
        return (
            f'data:{{"index":{self._index},"token":{{"id":{step.token.token_id},'
            f'"text":{encode_basestring_ascii(step.text)},"logprob":{logprob_of(step.token)!r},'
            '"special":false,"skipped":false},"generated_text":null,"details":null}\n\n'
        ).encode("ascii")

    def _any(self, step: Step) -> bytes:
        asked, run = self._asked, self._run
        event: dict[str, Any] = {
            "index": self._index,
            "token": _token(asked.words, step),
            "generated_text": None,
            "details": None,
        }
        if asked.top:
            event["top_tokens"] = [_alternative(asked.words, one) for one in step.top]
        if step.ending is not None:
            text = "".join(self._texts)
            event["generated_text"] = asked.prompt + text if asked.full_text else text
            event["details"] = {
                "finish_reason": _REASONS[step.ending],
                "prompt_tokens": run.prompt_tokens,
                "cached_tokens": run.cached_tokens,
                "generated_tokens": self._index,
                **run.drafting,
                "input_length": run.prompt_tokens,
                "skipped_tokens": 0,
                "seed": sampling.shown_seed(asked.jobs[0].params),
            }
        if self._index == 1 or step.ending is not None:
            event["adapters"] = _used(asked, run)
        return frame(event, space=False)


def _used(asked: GenerateRequest, run: Run) -> list[dict[str, Any]]:
    adapters = used(run.refs)
    if asked.merged_of is not None:
        adapters[0]["of"] = asked.merged_of
    return adapters


def _token(prompts: Prompts, step: Step) -> dict[str, Any]:
    token_id = step.token.token_id
    return {
        "id": token_id,
        # A special token is not part of the text, but its event shows it.
        "text": prompts.text_of(token_id) if step.special else step.text,
        "logprob": logprob_of(step.token),
        "special": step.special,
        "skipped": False,
    }


def _alternative(prompts: Prompts, token: TokenLogprob) -> dict[str, Any]:
    return {
        "id": token.token_id,
        "text": prompts.text_of(token.token_id),
        "logprob": logprob_of(token),
        "special": token.token_id in prompts.special_ids,
    }


def _refuse_unserved(given: Parameters) -> None:
    """Raise UnsupportedParameter for unserved fields that would change the answer."""
    if given.watermark:
        raise UnsupportedParameter(
            "parameters.watermark is not served; leave it out", param="watermark"
        )
    if given.return_k_alternatives is not None:
        raise UnsupportedParameter(
            "parameters.return_k_alternatives is not served; use top_n_tokens",
            param="return_k_alternatives",
        )
    if given.adapter_source == "hub":
        raise UnsupportedParameter(
            "parameters.adapter_source: requests cannot fetch from a hub, so 'hub' is refused; "
            "upload the adapter once (lorry adapters push, or POST /adapters), then name it and "
            "leave adapter_source out",
            param="adapter_source",
        )
    if given.adapter_source not in (None, "local"):
        raise UnsupportedParameter(
            "parameters.adapter_source: only 'local' is served; upload the adapter to /adapters "
            "first and name it",
            param="adapter_source",
        )
