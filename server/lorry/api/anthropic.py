"""`/v1/messages` and `/v1/messages/count_tokens`: a chat in Anthropic's format."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lorry.api.adapters_used import used
from lorry.api.anthropic_messages import format_of, messages_of, tool_choice_of, tools_of
from lorry.api.anthropic_output import Event, MessageObject
from lorry.api.anthropic_schema import (
    CountBody,
    MessageAnswer,
    MessagesBody,
    TokenCount,
)
from lorry.api.bodies import read_body
from lorry.api.chat import Chat, ChatRequest, Deltas
from lorry.api.chat_fields import chat_body, sent_as, taken
from lorry.api.chat_schema import ChatBody
from lorry.api.disconnect import until_gone
from lorry.api.docs import events_of, json_body
from lorry.api.errors import anthropic_body, documented
from lorry.api.hosted_tools import places
from lorry.api.openai import OpenAI, best, generated_tokens
from lorry.api.remarks import remarks_of
from lorry.api.runs import Run, Step, answers
from lorry.api.sse import frame, stream
from lorry.api.submission import renaming
from lorry.api.visit import place_of

COUNT = "/v1/messages/count_tokens"

_OWN = frozenset({"n", "stream_options", "messages", "tools", "tool_choice"})
"""Chat's fields that have another form here."""

_FIELDS = {
    "response_format": "output_config",
    "stop": "stop_sequences",
    "continue_final_message": "messages",
}
"""Chat's names for the fields of a message."""

_EXAMPLE = {"messages": [{"role": "user", "content": "How do I cook rice?"}]}


class Messages:
    def __init__(self, openai: OpenAI, chat: Chat) -> None:
        self._openai = openai
        self._chat = chat

    def router(self) -> APIRouter:
        router = APIRouter(tags=["anthropic"])
        router.add_api_route(
            "/v1/messages",
            self.create,
            methods=["POST"],
            summary="Answer a conversation, as Anthropic does",
            responses={
                200: {
                    "model": MessageAnswer,
                    "description": "The message; with `stream`, events",
                    "content": events_of("MessageEvent"),
                },
                **documented(400, 404, 409, 413, 415, 429, 507, 529, anthropic=True),
            },
            openapi_extra=json_body(MessagesBody, {**_EXAMPLE, "max_tokens": 40}),
            response_model=None,
        )
        router.add_api_route(
            COUNT,
            self.count,
            methods=["POST"],
            summary="Count a conversation's tokens, as Anthropic does",
            responses={
                200: {"model": TokenCount},
                **documented(400, 404, 409, 413, 415, anthropic=True),
            },
            openapi_extra=json_body(CountBody, _EXAMPLE),
            response_model=None,
        )
        return router

    async def create(self, request: Request) -> Response:
        """The next message of a conversation; with `stream`, events."""
        body = await read_body(request, MessagesBody)
        remarks_of(request).ignore(places(body.tools))
        with renaming(sent_as(body, _FIELDS)):
            asked = await until_gone(request.receive, self._chat.asked(_wanted(body)))
            if not body.stream:
                whole = self._whole(request, asked, body)
                return JSONResponse(await until_gone(request.receive, whole))
            runs = await self._chat.start(asked, place_of(request))
            made = self._begun(body, runs[0])
            frames = MessageFrames(self._chat.deltas(asked), made, runs[0])
            return await stream(request, runs, frames, self._openai.metrics)

    async def _whole(
        self, request: Request, asked: ChatRequest, body: MessagesBody
    ) -> dict[str, Any]:
        runs = await self._chat.start(asked, place_of(request))
        made = self._begun(body, runs[0])
        every = await answers(runs)
        made.found(runs[0].cached_tokens)
        (chosen,) = best(every, asked.n)
        deltas = self._chat.deltas(asked)
        for step in every[chosen].steps:
            for choice in deltas.step(0, step):
                made.grow(choice, step.stop)
        made.end(generated_tokens(every))
        return made.view

    def _begun(self, body: MessagesBody, run: Run) -> MessageObject:
        model = body.model or self._openai.base.first
        return MessageObject(model, used(run.refs), run.prompt_tokens)

    async def count(self, request: Request) -> Response:
        """The number of tokens in the prompt of this body; nothing is generated."""
        body = await read_body(request, CountBody)
        remarks_of(request).ignore(places(body.tools))
        with renaming(sent_as(body, _FIELDS)):
            asked = await until_gone(request.receive, self._chat.asked(_wanted(body)))
        return JSONResponse({"input_tokens": len(asked.jobs[0].prompt_ids)})


def _wanted(body: CountBody) -> ChatBody:
    """Convert the body to chat's format. Raises InvalidRequest, UnsupportedParameter."""
    fields = taken(body, own=_OWN, answer="message")
    choice = body.tool_choice or {}
    fields |= {
        "messages": messages_of(body.messages, body.system),
        "tools": tools_of(body.tools) or None,
        "tool_choice": tool_choice_of(body.tool_choice),
        "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") else None,
    }
    if fields["messages"][-1]["role"] == "assistant":
        fields["continue_final_message"] = True
    if body.stop_sequences:
        stop = body.stop or []
        fields["stop"] = [*([stop] if isinstance(stop, str) else stop), *body.stop_sequences]
    format = format_of(body.output_config, body.output_format)
    if format is not None:
        fields["response_format"] = format
    if body.user is None and isinstance(body.metadata, dict):
        fields["user"] = body.metadata.get("user_id")
    if body.thinking is not None:
        fields["enable_thinking"] = body.thinking.get("type") != "disabled"
    return chat_body(fields)


class MessageFrames:
    """The events of one stream."""

    def __init__(self, deltas: Deltas, made: MessageObject, run: Run) -> None:
        self._deltas = deltas
        self._made = made
        self._run = run
        self._generated = 0

    def step(self, index: int, step: Step) -> bytes:
        events: list[Event] = []
        if not self._generated:
            self._made.found(self._run.cached_tokens)
            events = self._made.begin()
        self._generated += 1
        for choice in self._deltas.step(index, step):
            events += self._made.grow(choice, step.stop)
        return _frames(events)

    def end(self) -> bytes:
        return _frames(self._made.end(self._generated))

    def failed(self, error: Exception) -> bytes:
        return _frames([anthropic_body(error)])


def _frames(events: list[Event]) -> bytes:
    return b"".join(frame(event, event=event["type"]) for event in events)
