"""`/v1/responses`: OpenAI's newer form of a chat, which can be stored and continued."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import cache, partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from lorry.access.caller import key_id
from lorry.api.adapters_used import used
from lorry.api.auth import keep_pass
from lorry.api.bodies import read_body
from lorry.api.chat import Chat, Deltas
from lorry.api.chat_fields import chat_body, sent_as, taken
from lorry.api.chat_schema import ChatBody
from lorry.api.disconnect import until_gone
from lorry.api.docs import events_of, json_body
from lorry.api.errors import PreviousNotFound, ResponseNotFound, documented, message_of
from lorry.api.hosted_tools import places
from lorry.api.openai import OpenAI, usage
from lorry.api.remarks import remarks_of
from lorry.api.response_background import Background
from lorry.api.response_items import (
    Item,
    format_of,
    items_of,
    messages_of,
    tool_choice_of,
    tools_of,
)
from lorry.api.response_object import PREFIX, ResponseObject
from lorry.api.response_output import Event
from lorry.api.response_store import ResponseStore, Stored
from lorry.api.responses_schema import (
    ResponseAnswer,
    ResponseDeleted,
    ResponseItems,
    ResponsesBody,
)
from lorry.api.runs import Run, Step, close_all
from lorry.api.sse import frame, stream
from lorry.api.submission import renaming
from lorry.api.visit import keep_place, place_of
from lorry.errors import InvalidRequest, UnsupportedParameter

_LOGPROBS = "message.output_text.logprobs"

_OWN = frozenset({"n", "stream_options"})
"""Chat's fields that do not concern the generation here."""

_FIELDS = {
    "messages": "input",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
}
"""Chat's names for the fields of a response."""

_EXAMPLE = {"input": "How do I cook rice?", "max_output_tokens": 40}


class Responses:
    def __init__(self, openai: OpenAI, chat: Chat, store: ResponseStore) -> None:
        self._openai = openai
        self._chat = chat
        self._store = store
        self._background = Background(store, openai.metrics)

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/responses", tags=["openai"])
        router.add_api_route(
            "",
            self.create,
            methods=["POST"],
            summary="Answer a conversation, as OpenAI's Responses do",
            responses={
                200: {
                    "model": ResponseAnswer,
                    "description": "The response; with `stream`, events",
                    "content": events_of("ResponseEvent"),
                },
                **documented(400, 404, 409, 413, 415, 429, 503, 507),
            },
            openapi_extra=json_body(ResponsesBody, _EXAMPLE),
            response_model=None,
        )
        one = "/{response_id}"
        for path, route, method, summary, model in (
            (one, self.retrieve, "GET", "Show a stored response", ResponseAnswer),
            (one, self.delete, "DELETE", "Delete a stored response", ResponseDeleted),
            (
                f"{one}/cancel",
                self.cancel,
                "POST",
                "Cancel a response that is made in the background",
                ResponseAnswer,
            ),
            (
                f"{one}/input_items",
                self.input_items,
                "GET",
                "Show the input of a stored response",
                ResponseItems,
            ),
        ):
            router.add_api_route(
                path,
                route,
                methods=[method],
                summary=summary,
                responses={200: {"model": model}, **documented(400, 404)},
                response_model=None,
            )
        return router

    async def create(self, request: Request) -> Response:
        """The next items of a conversation; with `stream`, events."""
        body = await read_body(request, ResponsesBody)
        remarks_of(request).ignore(places(body.tools))
        owner = key_id()
        tools, names = tools_of(body.tools)
        wanted, items = self._wanted(body, tools, owner)
        with renaming(sent_as(body, _FIELDS)):
            asked = await until_gone(request.receive, self._chat.asked(wanted))
            place = place_of(request)
            made = ResponseObject(
                uuid.uuid4().hex,
                body,
                body.model or self._openai.base.first,
                names,
                asked.jobs[0].params,
            )

            def keep(view: dict[str, Any]) -> None:
                if body.store is not False:
                    self._store.put(owner, view, items)

            if not body.stream and not body.background:
                answer = await until_gone(request.receive, self._chat.whole(asked, place))
                made.complete(answer)
                keep(made.view)
                return JSONResponse(made.view)
            runs = await self._chat.start(asked, place)
            made.begin(used(runs[0].refs))
            if body.background:
                finished = partial(self._chat.finished, asked, runs)
                over = keep_pass(request)
                if not self._background.begin(made, owner, items, finished, over):
                    over()
                    await close_all(runs)
                    raise UnsupportedParameter(
                        "background: this server cannot store the response (--keep-responses, "
                        "--responses-memory), so it could never be fetched; leave it out",
                        param="background",
                    )
                keep_place(request)
                return JSONResponse(made.view)
            frames = ResponseFrames(self._chat.deltas(asked), made, runs[0], keep)
            return await stream(request, runs, frames, self._openai.metrics)

    async def retrieve(self, request: Request, response_id: str, stream: bool = False) -> Response:
        """A response that is still stored."""
        if stream:
            raise UnsupportedParameter(
                "stream: a stored response is returned whole; leave it out", param="stream"
            )
        return Response(self._found(request, response_id).response, media_type="application/json")

    async def delete(self, request: Request, response_id: str) -> Response:
        """Gone at once, and cancelled if it is still being made. Responses that continued from it
        keep the conversation."""
        self._found(request, response_id)
        await self._background.stop(response_id)
        self._store.remove(key_id(), response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    async def cancel(self, request: Request, response_id: str) -> Response:
        """The response as it was when it stopped. One that has ended stays as it is."""
        if not self._found(request, response_id).answer()["background"]:
            raise InvalidRequest(
                "this response was not made in the background, so it cannot be cancelled; to stop "
                "a response, close its connection",
                param="response_id",
            )
        await self._background.stop(response_id)
        return Response(self._found(request, response_id).response, media_type="application/json")

    async def input_items(
        self,
        request: Request,
        response_id: str,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        """The model's whole input except `instructions`, including earlier responses."""
        items = self._found(request, response_id).given()
        if order == "desc":
            items.reverse()
        if after is not None:
            places = [index for index, item in enumerate(items) if item["id"] == after]
            if not places:
                raise InvalidRequest(f"after: there is no item {after[:80]!r}", param="after")
            items = items[places[0] + 1 :]
        page = items[:limit]
        return JSONResponse(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": len(items) > limit,
            }
        )

    def _found(self, request: Request, response_id: str) -> Stored:
        found = self._store.get(key_id(), response_id)
        if found is None:
            raise ResponseNotFound(
                f"there is no stored response {response_id[:80]!r}; it was made with store: false "
                "or another key, was deleted, or has expired"
            )
        return found

    def _wanted(
        self, body: ResponsesBody, tools: list[dict[str, Any]], owner: str
    ) -> tuple[ChatBody, list[Item]]:
        """Return the body in chat's form, and all items of the model's input.

        Raises InvalidRequest, UnsupportedParameter, PreviousNotFound.
        """
        if body.background and body.stream:
            raise UnsupportedParameter(
                "background: a stream ends with its connection; leave background or stream out",
                param="background",
            )
        if body.background and body.store is False:
            raise InvalidRequest(
                "background: a response that is not stored could never be fetched; leave store or "
                "background out",
                param="background",
            )
        fields = taken(body, own=_OWN, answer="answer")
        items = self._before(body.previous_response_id, owner)
        own = items_of(body.input, self._finder(owner))
        items += own
        if not items:
            raise InvalidRequest("input is empty; send a string or items", param="input")
        messages = messages_of(items, new=len(own))
        if body.instructions is not None:
            messages.insert(0, {"role": "system", "content": body.instructions})
        fields |= {
            "messages": messages,
            "tools": tools or None,
            "tool_choice": tool_choice_of(body.tool_choice),
        }
        if body.max_output_tokens is not None:
            fields["max_completion_tokens"] = body.max_output_tokens
        if body.text is not None and body.text.format is not None:
            fields["response_format"] = format_of(body.text.format)
        if (body.reasoning or {}).get("effort") == "none":
            fields["enable_thinking"] = False
        if body.top_logprobs or _LOGPROBS in (body.include or ()):
            fields["logprobs"] = True
        else:
            fields.pop("top_logprobs", None)
        return chat_body(fields), items

    def _before(self, previous: str | None, owner: str) -> list[Item]:
        if previous is None:
            return []
        found = self._store.get(owner, previous)
        if found is None:
            raise PreviousNotFound(
                f"there is no stored response {previous[:80]!r} to continue from; send the whole "
                "conversation as input"
            )
        answer = found.answer()
        if answer["status"] == "in_progress":
            raise InvalidRequest(
                f"the response {previous!r} is still being made; continue from it when it has "
                "ended",
                param="previous_response_id",
            )
        output: list[Item] = answer["output"]
        return found.given() + output

    def _finder(self, owner: str) -> Callable[[str], Item | None]:
        """Return a function that finds an item of a stored response's output by its id (`Output`).
        No response is decoded twice."""

        @cache
        def output(key: str) -> dict[str, Item]:
            found = self._store.get(owner, PREFIX + key)
            return {} if found is None else {one["id"]: one for one in found.answer()["output"]}

        return lambda item_id: output(item_id.partition("_")[2].partition("_")[0]).get(item_id)


class ResponseFrames:
    """Makes the events of one stream."""

    def __init__(
        self,
        deltas: Deltas,
        made: ResponseObject,
        run: Run,
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        self._deltas = deltas
        self._made = made
        self._run = run
        self._keep = keep
        self._generated = 0
        self._number = 0

    def step(self, index: int, step: Step) -> bytes:
        begun = [] if self._generated else ["response.created", "response.in_progress"]
        events = b"".join(self._frame(self._event(kind)) for kind in begun)
        self._generated += 1
        for choice in self._deltas.step(index, step):
            for event in self._made.grow(choice):
                events += self._frame(event)
        return events

    def end(self) -> bytes:
        self._made.end(
            usage(
                self._run.prompt_tokens,
                self._generated,
                self._deltas.reasoning_tokens,
                cached=self._run.cached_tokens,
            )
        )
        self._keep(self._made.view)
        return self._frame(self._event(f"response.{self._made.view['status']}"))

    def failed(self, error: Exception) -> bytes:
        self._made.fail(message_of(error))
        return self._frame(self._event("response.failed"))

    def _event(self, kind: str) -> Event:
        return {"type": kind, "response": self._made.view}

    def _frame(self, event: Event) -> bytes:
        numbered = {**event, "sequence_number": self._number}
        self._number += 1
        return frame(numbered, event=event["type"])
