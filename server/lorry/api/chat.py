"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lorry.api.adapters_used import used
from lorry.api.bodies import read_body
from lorry.api.chat_schema import ChatAnswer, ChatBody
from lorry.api.chat_template import TemplateEnding
from lorry.api.completions import shown
from lorry.api.disconnect import until_gone
from lorry.api.docs import events_of, json_body
from lorry.api.errors import documented, openai_body
from lorry.api.functions import choice_to, messages_from, tools_from
from lorry.api.manner import manner_of
from lorry.api.messages import template_messages, text_of
from lorry.api.openai import (
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
from lorry.api.prompts import Prompts
from lorry.api.runs import Answer, Job, Run, Step, answers, logprob_of
from lorry.api.sse import frame, stream
from lorry.api.structure import grammar_asked
from lorry.api.telling import Telling, message_of
from lorry.api.token_report import TokenReport
from lorry.api.tools import Tools, tools_of
from lorry.api.visit import place_of
from lorry.core import TokenLogprob
from lorry.engine.places import Place
from lorry.errors import InvalidRequest, UnsupportedParameter
from lorry_adapters.registry.record import AdapterChoice


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A resolved body."""

    choices: tuple[AdapterChoice, ...]
    jobs: list[Job]
    logprobs: bool
    prompts: Prompts
    telling: Callable[[], Telling]
    """Makes one for each answer."""
    n: int
    """The number of answers that are returned."""
    report: TokenReport
    functions: bool = False
    """True for requests and answers with `functions`."""


_EXAMPLE = {
    "messages": [{"role": "user", "content": "How do I cook rice?"}],
    "max_completion_tokens": 40,
}


class Chat:
    def __init__(self, openai: OpenAI, *, own_templates: bool = False) -> None:
        """`own_templates`: a request may bring its own template."""
        self._openai = openai
        self._own_templates = own_templates

    def router(self) -> APIRouter:
        router = APIRouter(tags=["openai"])
        router.add_api_route(
            "/v1/chat/completions",
            self.chat,
            methods=["POST"],
            summary="Answer a conversation",
            responses={
                200: {
                    "model": ChatAnswer,
                    "description": "The answer; with `stream`, events",
                    "content": events_of("ChatChunk"),
                },
                **documented(400, 404, 409, 413, 415, 429, 503, 507),
            },
            openapi_extra=json_body(ChatBody, _EXAMPLE),
            response_model=None,
        )
        return router

    async def chat(self, request: Request) -> Response:
        """The next message of a conversation; with `stream`, chunks."""
        body = await read_body(request, ChatBody)
        options = stream_options_of(body)
        asked = await until_gone(request.receive, self.asked(body))
        place = place_of(request)
        if not body.stream:
            envelope = self._openai.envelope("chatcmpl", "chat.completion", body)
            made = await until_gone(request.receive, self.whole(asked, place))
            return JSONResponse({**envelope, **made})
        runs = await self.start(asked, place)
        chunks = Chunks(
            envelope=self._openai.envelope("chatcmpl", "chat.completion.chunk", body),
            refs=runs[0].refs,
            prompt_tokens=prompt_tokens(runs, len(runs)),
            options=options,
            choices=len(runs),
            cached_tokens=partial(cached_tokens, runs, len(runs)),
        )
        prompt = asked.report.prompt(asked.prompts, asked.jobs[0].prompt_ids)
        frames = ChatFrames(self.deltas(asked), chunks, prompt)
        return await stream(request, runs, frames, self._openai.metrics)

    async def start(self, asked: ChatRequest, place: Place) -> list[Run]:
        """Start generating the answers."""
        return await self._openai.runs.start(
            asked.jobs, asked.choices, place, param="messages", each=len(asked.jobs)
        )

    async def whole(self, asked: ChatRequest, place: Place) -> dict[str, Any]:
        """Return complete answers: `choices`, `usage` and `adapters`."""
        return await self.finished(asked, await self.start(asked, place))

    async def finished(self, asked: ChatRequest, runs: Sequence[Run]) -> dict[str, Any]:
        """Like `whole`, of runs that were started."""
        made = await answers(runs)
        tellings = [asked.telling() for _ in made]
        told = zip(tellings, made, strict=True)
        every = [self._choice(asked, *one) for one in told]
        given = [every[at] for at in best(made, asked.n)]
        prompt_ids = asked.jobs[0].prompt_ids
        return {
            **asked.report.prompt(asked.prompts, prompt_ids, made[0].prompt),
            "choices": [{"index": index, **one} for index, one in enumerate(given)],
            "usage": usage(
                prompt_tokens(runs, len(runs)),
                generated_tokens(made),
                sum(telling.reasoning_tokens for telling in tellings),
                cached=cached_tokens(runs, len(runs)),
            ),
            "adapters": used(runs[0].refs),
        }

    def deltas(self, asked: ChatRequest) -> Deltas:
        return Deltas(asked)

    def _choice(self, asked: ChatRequest, telling: Telling, answer: Answer) -> dict[str, Any]:
        deltas = [one for step in answer.steps for one in telling.push(step.text)]
        deltas += telling.end()
        choice = {
            "message": message_of(deltas),
            "logprobs": _logprobs(asked.prompts, answer.steps) if asked.logprobs else None,
            "finish_reason": telling.reason(answer.ending),
            "stop_reason": answer.reason,
            **asked.report.answer(answer.steps),
        }
        return choice_to(choice) if asked.functions else choice

    async def asked(self, body: ChatBody) -> ChatRequest:
        """Resolve a body. Raises InvalidRequest, UnsupportedParameter and the adapters' errors."""
        openai = self._openai
        if body.modalities not in (None, ["text"]):
            raise UnsupportedParameter("modalities: only text is served", param="modalities")
        if body.top_logprobs and not body.logprobs:
            raise InvalidRequest(
                "top_logprobs needs logprobs: true; set it, or leave both out",
                param="top_logprobs",
            )
        n, each = counts_of(body)
        openai, choices = await openai.speaking(openai.choices(body))
        report = TokenReport.of(body, openai.prompts)
        tools = _tools(body)
        grammar = grammar_asked(body)
        if tools.forced and grammar is not None:
            if grammar.param != "response_format":
                raise InvalidRequest(
                    f"{grammar.param} and a forced tool_choice exclude each other",
                    param="tool_choice",
                )
            # The format is for text, which a forced answer does not contain. Instructor sends both.
            grammar = None
        if body.chat_template and not self._own_templates:
            raise UnsupportedParameter(
                "chat_template: this server takes no templates from requests; leave it out, or "
                "start the server with --trust-request-chat-template",
                param="chat_template",
            )
        messages = template_messages(messages_from(body.messages))
        ending = _ending(body, messages)
        rendered = await openai.prompts.chats.rendered(
            messages,
            tools=tools.shown,
            variables=_variables(body),
            documents=body.documents,
            template=body.chat_template or None,
            ending=ending,
            tool_prompt=body.tool_prompt,
            parse_special=bool(body.parse_special),
        )
        manner = manner_of(
            openai.prompts,
            tools,
            rendered,
            begun=_last(messages) if ending is TemplateEnding.OPEN else "",
            bound=tools.forced or grammar is not None,
        )
        # The template has already placed every special token.
        wanted = body.max_completion_tokens or body.max_tokens
        if wanted == 0:
            raise InvalidRequest("max_tokens must be at least 1, not 0", param="max_tokens")
        ids = await openai.prompts.encode(
            manner.prompt,
            param="messages",
            add_special_tokens=bool(body.add_special_tokens),
            marked=not body.parse_special,
            truncate=openai.kept_of_prompt(body, choices, wanted),
        )
        report.check([ids])
        params = openai.params(
            body,
            max_new_tokens=openai.new_tokens(wanted, ids, choices),
            top_logprobs=body.top_logprobs or 0,
            prompt_logprobs=report.top,
        )
        jobs = await openai.jobs(body, ids, params, each, tools.grammar or grammar)
        if manner.visible:
            jobs = [replace(job, visible=job.visible | manner.visible) for job in jobs]
        telling = partial(
            manner.telling,
            silent=body.include_reasoning is False,
            echo=_last(messages) if body.echo else "",
        )
        return ChatRequest(
            choices,
            jobs,
            bool(body.logprobs),
            openai.prompts,
            telling,
            n,
            report,
            body.functions is not None,
        )


class Deltas:
    """Makes the choices of a stream's chunks from its steps."""

    def __init__(self, asked: ChatRequest) -> None:
        self._asked = asked
        self._tellings: dict[int, Telling] = {}
        self._held: dict[int, list[Step]] = {}
        """Steps whose text is not certain yet."""
        self._untold: dict[int, list[Step]] = {}
        """Steps that are not in any choice yet."""

    @property
    def reasoning_tokens(self) -> int:
        return sum(telling.reasoning_tokens for telling in self._tellings.values())

    def step(self, index: int, step: Step) -> list[dict[str, Any]]:
        asked = self._asked
        made: list[dict[str, Any]] = []
        if index not in self._tellings:
            self._tellings[index] = asked.telling()
            self._held[index] = []
            made.append(_choice_of(index, {"role": "assistant", "content": ""}))
        telling = self._tellings[index]
        deltas = telling.push(step.text)
        if step.ending is not None:
            deltas += telling.end()
        self._held[index].append(step)
        if asked.logprobs and step.ending is not None and not deltas:
            deltas = [{"content": ""}]
        for delta in deltas:
            # The first delta carries the log-probabilities of all held steps.
            held, self._held[index] = self._held[index], []
            logprobs = _logprobs(asked.prompts, held) if asked.logprobs and held else None
            made.append(_choice_of(index, delta, logprobs))
        if step.ending is not None:
            last = _choice_of(index, {}, None, telling.reason(step.ending))
            made.append({**last, "stop_reason": step.reason})
        if asked.report.ids:
            self._untold.setdefault(index, []).append(step)
            if made:
                made[-1] |= asked.report.answer(self._untold.pop(index))
        return [choice_to(one) for one in made] if asked.functions else made


class ChatFrames:
    """Makes the frames of one stream."""

    def __init__(self, deltas: Deltas, chunks: Chunks, prompt: dict[str, Any]) -> None:
        """`prompt`: the fields about the prompt in the first chunk."""
        self._deltas = deltas
        self._chunks = chunks
        self._prompt = prompt

    def step(self, index: int, step: Step) -> bytes:
        self._chunks.generated += 1
        choices = self._deltas.step(index, step)
        self._chunks.reasoning = self._deltas.reasoning_tokens
        made = b""
        for choice in choices:
            made += self._chunks.chunk(choice, self._prompt)
            self._prompt = {}
        return made

    def end(self) -> bytes:
        return self._chunks.end()

    def failed(self, error: Exception) -> bytes:
        return frame(openai_body(error))


def _variables(body: ChatBody) -> dict[str, Any]:
    """Return the template's variables."""
    variables = dict(body.chat_template_kwargs or {})
    if body.enable_thinking is not None:
        variables.setdefault("enable_thinking", body.enable_thinking)
    return variables


def _ending(body: ChatBody, messages: Sequence[Mapping[str, Any]]) -> TemplateEnding:
    """Return the ending. Raises InvalidRequest."""
    if not body.continue_final_message:
        return (
            TemplateEnding.MESSAGE if body.add_generation_prompt is False else TemplateEnding.TURN
        )
    if body.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other; set one",
            param="continue_final_message",
        )
    if messages[-1]["role"] != "assistant" or not messages[-1].get("content"):
        raise InvalidRequest(
            "continue_final_message: the last message must be the assistant's and have content",
            param="continue_final_message",
        )
    return TemplateEnding.OPEN


def _last(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last message if it is the assistant's."""
    last = messages[-1]
    return text_of(last.get("content")) if last["role"] == "assistant" else ""


def _tools(body: ChatBody) -> Tools:
    """Return the tools. Raises InvalidRequest, UnsupportedParameter."""
    if body.functions is None and body.function_call in (None, "none", "auto"):
        return tools_of(body.tools, body.tool_choice, parallel=body.parallel_tool_calls)
    if body.tools is not None or body.tool_choice is not None:
        raise InvalidRequest("functions and tools exclude each other", param="functions")
    tools, choice = tools_from(body.functions or [], body.function_call)
    return tools_of(tools, choice, parallel=False)


def _logprobs(prompts: Prompts, steps: Sequence[Step]) -> dict[str, Any]:
    return {
        "content": [
            {
                **_logprob(prompts, step.token),
                "top_logprobs": [_logprob(prompts, one) for one in step.top],
            }
            for step in steps
            if shown(step)
        ]
    }


def _logprob(prompts: Prompts, token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": prompts.text_of(token.token_id),
        "logprob": logprob_of(token),
        "bytes": prompts.bytes_of(token.token_id),
    }


def _choice_of(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }
