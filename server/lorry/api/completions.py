"""`/v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lorry.api.adapters_used import used
from lorry.api.bodies import read_body
from lorry.api.completions_schema import CompletionAnswer, CompletionsBody
from lorry.api.disconnect import until_gone
from lorry.api.docs import events_of, json_body
from lorry.api.errors import documented, openai_body
from lorry.api.openai import (
    FINISH,
    Chunks,
    OpenAI,
    best,
    cached_tokens,
    counts_of,
    generated_tokens,
    prompt_tokens,
    stream_options_of,
    usage,
)
from lorry.api.prompt_list import Prompt, prompts_of
from lorry.api.prompts import Prompts
from lorry.api.runs import Answer, Ending, Job, Step, answers, logprob_of
from lorry.api.sampling import seed_of
from lorry.api.sse import frame, stream
from lorry.api.token_report import TokenReport
from lorry.api.visit import place_of
from lorry.core import SamplingParams, TokenLogprob
from lorry.engine.places import Place
from lorry.engine.text import Detokenizer
from lorry.errors import InvalidRequest, UnsupportedParameter
from lorry_adapters.registry.record import AdapterChoice

DEFAULT_TOKENS = 16
"""OpenAI's default."""

MAX_PROMPTS = 128


@dataclass(frozen=True, slots=True)
class CompletionsRequest:
    """A resolved body: `each` jobs for every prompt, of which `n` are returned."""

    prompts: list[Prompt]
    choices: tuple[AdapterChoice, ...]
    jobs: list[Job]
    each: int
    n: int
    echo: bool
    logprobs: bool
    top: int
    """How many of the likeliest tokens are listed beside each token."""
    report: TokenReport
    silent: bool
    """No new token was requested: only the echo is returned."""
    words: Prompts
    """The tokenizer for all prompts and answers."""


@dataclass(slots=True)
class Logprobs:
    """The columns of one choice, filled token by token."""

    prompts: Prompts
    offset: int = 0
    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {
            "text_offset": [],
            "token_logprobs": [],
            "tokens": [],
            "top_logprobs": [],
        }
    )

    def prompt(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], top: int) -> None:
        """Add the prompt's tokens, with the `top` likeliest beside each."""
        text = Detokenizer(self.prompts.decode, self.prompts.special_ids)
        for token_id, one in zip(ids, logprobs, strict=True):
            self._add(token_id, one, () if one is None else one.top[:top], text.push(token_id))

    def step(self, step: Step) -> None:
        self._add(step.token.token_id, step.token, step.top, step.text)

    def _add(
        self, token_id: int, one: TokenLogprob | None, likeliest: Sequence[TokenLogprob], text: str
    ) -> None:
        """`one` is None for the very first token, which nothing predicts."""
        top = None
        if one is not None:
            top = {self._label(other.token_id): logprob_of(other) for other in likeliest}
            top.setdefault(self._label(token_id), logprob_of(one))
        self.columns["text_offset"].append(self.offset)
        self.columns["token_logprobs"].append(None if one is None else logprob_of(one))
        self.columns["tokens"].append(self._label(token_id))
        self.columns["top_logprobs"].append(top)
        self.offset += len(text)

    def _label(self, token_id: int) -> str:
        """Return a token's text, or `bytes:\\xf0\\x9f` for a part of a character, as OpenAI does,
        because all of those would look alike."""
        text = self.prompts.text_of(token_id)
        if "\ufffd" in text:
            raw = self.prompts.bytes_of(token_id)
            if raw is not None:
                return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return text

    def take(self) -> dict[str, list[Any]]:
        """Return the entries added since the last call."""
        taken = self.columns
        self.columns = {name: [] for name in taken}
        return taken


class Texts:
    """Makes the frames of one stream."""

    def __init__(self, asked: CompletionsRequest, chunks: Chunks) -> None:
        self._asked = asked
        self._chunks = chunks
        self._columns = [Logprobs(asked.words) for _ in asked.jobs]
        self._begun = [False] * len(asked.jobs)
        self._told = [False] * len(asked.jobs)
        self._untold: list[list[Step]] = [[] for _ in asked.jobs]
        """Steps that are not in any chunk yet."""

    def step(self, index: int, step: Step) -> bytes:
        asked, columns = self._asked, self._columns[index]
        text = "" if asked.silent else step.text
        if asked.echo and not self._begun[index]:
            prompt = asked.prompts[index // asked.each]
            text = prompt.text + text
            if asked.logprobs:
                columns.prompt(prompt.ids, step.prompt, asked.top)
        self._begun[index] = True
        if not asked.silent:
            self._untold[index].append(step)
            self._chunks.generated += 1
            if asked.logprobs and shown(step):
                columns.step(step)
        taken = columns.take()
        if not (text or taken["tokens"] or step.ending is not None):
            return b""
        first, self._told[index] = not self._told[index], True
        untold, self._untold[index] = self._untold[index], []
        ids = asked.prompts[index // asked.each].ids
        reason = {"stop_reason": None if asked.silent else step.reason}
        return self._chunks.chunk(
            {
                "index": index,
                "text": text,
                "logprobs": taken if asked.logprobs else None,
                "finish_reason": None if step.ending is None else FINISH[step.ending],
                **({} if step.ending is None else reason),
                **(asked.report.prompt(asked.words, ids) if first else {}),
                **asked.report.answer(untold),
            }
        )

    def end(self) -> bytes:
        return self._chunks.end()

    def failed(self, error: Exception) -> bytes:
        return frame(openai_body(error))


_EXAMPLE = {"prompt": "How do I cook rice?", "max_tokens": 40}


class Completions:
    def __init__(self, openai: OpenAI) -> None:
        self._openai = openai

    def router(self) -> APIRouter:
        router = APIRouter(tags=["openai"])
        router.add_api_route(
            "/v1/completions",
            self.complete,
            methods=["POST"],
            summary="Complete a text",
            responses={
                200: {
                    "model": CompletionAnswer,
                    "description": "The answer; with `stream`, events",
                    "content": events_of("CompletionAnswer"),
                },
                **documented(400, 404, 409, 413, 415, 429, 503, 507),
            },
            openapi_extra=json_body(CompletionsBody, _EXAMPLE),
            response_model=None,
        )
        return router

    async def complete(self, request: Request) -> Response:
        """The continuation of a text, or of each of several; with `stream`, chunks."""
        body = await read_body(request, CompletionsBody)
        options = stream_options_of(body)
        asked = await until_gone(request.receive, self._asked(body))
        place = place_of(request)
        envelope = self._openai.envelope("cmpl", "text_completion", body)
        if not body.stream:
            whole = self._whole(asked, place, envelope)
            return JSONResponse(await until_gone(request.receive, whole))
        runs = await self._openai.runs.start(
            asked.jobs, asked.choices, place, param="prompt", each=asked.each
        )
        chunks = Chunks(
            envelope=envelope,
            refs=runs[0].refs,
            prompt_tokens=prompt_tokens(runs, asked.each),
            options=options,
            choices=len(runs),
            cached_tokens=partial(cached_tokens, runs, asked.each),
        )
        frames = Texts(asked, chunks)
        return await stream(request, runs, frames, self._openai.metrics)

    async def _whole(
        self, asked: CompletionsRequest, place: Place, envelope: dict[str, Any]
    ) -> dict[str, Any]:
        runs = await self._openai.runs.start(
            asked.jobs, asked.choices, place, param="prompt", each=asked.each
        )
        made = await answers(runs)
        choices: list[dict[str, Any]] = []
        for index, prompt in enumerate(asked.prompts):
            group = made[index * asked.each : (index + 1) * asked.each]
            for at in best(group, asked.n):
                choices.append(self._choice(asked, prompt, group[at], len(choices)))
        generated = 0 if asked.silent else generated_tokens(made)
        return {
            **envelope,
            "choices": choices,
            "usage": usage(
                prompt_tokens(runs, asked.each), generated, cached=cached_tokens(runs, asked.each)
            ),
            "adapters": used(runs[0].refs),
        }

    def _choice(
        self, asked: CompletionsRequest, prompt: Prompt, answer: Answer, index: int
    ) -> dict[str, Any]:
        text = prompt.text if asked.echo else ""
        columns = Logprobs(asked.words)
        if asked.logprobs and asked.echo:
            columns.prompt(prompt.ids, answer.prompt, asked.top)
        if not asked.silent:
            text += answer.text
            for step in answer.steps:
                if shown(step):
                    columns.step(step)
        return {
            "index": index,
            "text": text,
            "logprobs": columns.take() if asked.logprobs else None,
            "finish_reason": FINISH[answer.ending],
            "stop_reason": None if asked.silent else answer.reason,
            **asked.report.prompt(asked.words, prompt.ids, answer.prompt),
            **asked.report.answer([] if asked.silent else answer.steps),
        }

    async def _asked(self, body: CompletionsBody) -> CompletionsRequest:
        """Resolve a body. Raises InvalidRequest, UnsupportedParameter and the adapters' errors."""
        openai = self._openai
        if body.suffix:
            raise UnsupportedParameter("suffix is not served; leave it out", param="suffix")
        openai, choices = await openai.speaking(openai.choices(body))
        n, each = counts_of(body)
        report = TokenReport.of(body, openai.prompts)
        echo = bool(body.echo)
        silent = body.max_tokens == 0
        if silent and not echo:
            raise InvalidRequest(
                "max_tokens must be at least 1 without echo, not 0", param="max_tokens"
            )
        prompts = await prompts_of(
            body.prompt,
            openai.prompts,
            param="prompt",
            most=MAX_PROMPTS,
            truncate=openai.kept_of_prompt(body, choices, body.max_tokens or DEFAULT_TOKENS),
            add_special_tokens=body.add_special_tokens,
        )
        report.check([one.ids for one in prompts])
        params = openai.params(
            body,
            max_new_tokens=1,
            top_logprobs=body.logprobs or 0,
            prompt_logprobs=_most(body.logprobs if echo else None, report.top),
        )

        def of(ids: Sequence[int]) -> SamplingParams:
            new = openai.new_tokens(body.max_tokens, ids, choices, default=DEFAULT_TOKENS)
            return replace(params, max_new_tokens=max(1, new), seed=seed_of(body.seed))

        jobs = await openai.jobs_of_all(body, [(one.ids, of(one.ids)) for one in prompts], each)
        return CompletionsRequest(
            prompts=prompts,
            choices=choices,
            jobs=jobs,
            each=each,
            n=n,
            echo=echo,
            logprobs=body.logprobs is not None,
            top=body.logprobs or 0,
            report=report,
            silent=silent,
            words=openai.prompts,
        )


def _most(*counts: int | None) -> int | None:
    given = [one for one in counts if one is not None]
    return max(given) if given else None


def shown(step: Step) -> bool:
    """Return whether a step is shown. An end-of-text token is counted but not shown."""
    return not (step.ending is Ending.EOS and step.special)
