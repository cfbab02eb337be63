"""`/tokenize`, `/detokenize`, `/tokenizer_info`: a tokenizer for clients that have none.

`/tokenize` follows TGI if the text is in `inputs`, and vLLM if it is in `prompt` or, as a
conversation, in `messages`.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response
from transformers import PreTrainedTokenizerFast

from lorry.api.bodies import Body, read_body
from lorry.api.bounds import TokenId
from lorry.api.chat import Chat
from lorry.api.chat_schema import ChatBody
from lorry.api.disconnect import until_gone
from lorry.api.docs import json_body
from lorry.api.errors import documented
from lorry.api.fields import Strays
from lorry.api.message_shapes import Messages, Tools
from lorry.api.messages import KEYS
from lorry.api.prompt_list import SpecialTokens
from lorry.api.prompts import Prompts
from lorry.api.selection import BaseNames, choices_of_model
from lorry.api.shape import one_of
from lorry.api.sifting import Listed
from lorry.api.voices import Voices
from lorry.errors import InvalidRequest
from lorry_adapters.registry.registry import Registry

_OF_CHAT = (
    "model",
    "messages",
    "tools",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "parse_special",
)


class TokenizeBody(Body):
    model_config = ConfigDict(json_schema_extra=one_of("inputs", "prompt", "messages"))
    strays: ClassVar[Strays] = Strays.HARMLESS

    inputs: str | None = Field(default=None, description="A text, for TGI's answer.")
    prompt: str | None = Field(default=None, description="A text, for vLLM's answer.")
    messages: Annotated[Messages, Listed(KEYS)] | None = Field(
        default=None, description="A conversation, for vLLM's answer."
    )
    model: str | None = Field(
        default=None, description="The base, or an adapter, which may have tokens of its own."
    )
    add_special_tokens: SpecialTokens = None
    return_token_strs: bool | None = Field(
        default=None, description="For vLLM's answer: also return the tokens as strings."
    )
    tools: Tools | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    parse_special: bool | None = Field(
        default=None, description="As in chat: whether special tokens in messages are such."
    )


class DetokenizeBody(Body):
    strays: ClassVar[Strays] = Strays.HARMLESS

    tokens: list[TokenId]
    model: str | None = Field(
        default=None, description="The base, or an adapter, which may have tokens of its own."
    )


class TextToken(BaseModel):
    id: int
    text: str
    start: int
    stop: int


class Tokenized(BaseModel):
    """vLLM's answer."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    tokenizer_class: str
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


class Tokens:
    def __init__(
        self,
        *,
        voices: Voices,
        chat: Chat,
        registry: Registry,
        base: BaseNames,
        max_model_len: int,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        self._voices = voices
        self._chat = chat
        self._registry = registry
        self._base = base
        self._max_model_len = max_model_len
        self._tokenizer = tokenizer

    def router(self) -> APIRouter:
        router = APIRouter(tags=["tokens"])
        router.add_api_route(
            "/tokenize",
            self.tokenize,
            methods=["POST"],
            summary="Turn text into tokens",
            responses={
                200: {"model": list[TextToken] | Tokenized, "description": "TGI's, or vLLM's"},
                **documented(400, 404, 413, 415, 422, tgi=True),
            },
            openapi_extra=json_body(TokenizeBody, {"prompt": "How do I cook rice?"}),
            response_model=None,
        )
        router.add_api_route(
            "/detokenize",
            self.detokenize,
            methods=["POST"],
            summary="Turn tokens into text",
            responses={200: {"model": Detokenized}, **documented(400, 404, 413, 415)},
            openapi_extra=json_body(DetokenizeBody, {"tokens": [1, 2, 3]}),
            response_model=None,
        )
        router.add_api_route(
            "/tokenizer_info",
            self.info,
            methods=["GET"],
            summary="Show the tokenizer's special tokens and template",
            responses={200: {"model": TokenizerInfo}, **documented()},
            response_model=None,
        )
        return router

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text: TGI's list for `inputs`, vLLM's object for `prompt` and
        `messages`."""
        body = await read_body(request, TokenizeBody)
        texts = (body.inputs, body.prompt, body.messages)
        if sum(one is not None for one in texts) != 1:
            raise InvalidRequest(
                "exactly one of inputs, prompt and messages is required",
                param="inputs",
            )
        prompts = await self._of(body.model)
        if body.inputs is not None:
            pieces = await prompts.pieces(body.inputs, add_special_tokens=body.add_special_tokens)
            return JSONResponse(
                [
                    {"id": one.id, "text": one.text, "start": one.start, "stop": one.stop}
                    for one in pieces
                ]
            )
        ids = await self._ids(request, body, prompts)
        return JSONResponse(
            {
                "count": len(ids),
                "max_model_len": self._max_model_len,
                "tokens": ids,
                "token_strs": prompts.written(ids) if body.return_token_strs else None,
            }
        )

    async def detokenize(self, request: Request) -> Response:
        """The text of some tokens, special ones included."""
        body = await read_body(request, DetokenizeBody)
        prompts = await self._of(body.model)
        ids = await prompts.check_ids(body.tokens, param="tokens") if body.tokens else []
        return JSONResponse({"prompt": await asyncio.to_thread(prompts.decode, ids)})

    async def info(self) -> Response:
        """For clients that render chats themselves: special tokens and the template."""
        tokenizer = self._tokenizer
        template = tokenizer.chat_template
        special = ("bos_token", "eos_token", "pad_token", "unk_token")
        return JSONResponse(
            {
                "tokenizer_class": type(tokenizer).__name__,
                "model_max_length": self._max_model_len,
                **{name: getattr(tokenizer, name) for name in special},
                "chat_template": template if isinstance(template, str) else None,
            }
        )

    async def _of(self, model: str | None) -> Prompts:
        """Return the tokenizer of a model. Raises ModelNotFound."""
        choices = choices_of_model(model, self._base, self._registry)
        voice, _ = await self._voices.of(choices)
        return voice.prompts

    async def _ids(self, request: Request, body: TokenizeBody, prompts: Prompts) -> list[int]:
        if body.prompt is not None:
            pieces = await prompts.pieces(body.prompt, add_special_tokens=body.add_special_tokens)
            return [one.id for one in pieces]
        given = body.model_fields_set & set(_OF_CHAT)
        chat = ChatBody.model_validate({name: getattr(body, name) for name in given})
        asked = await until_gone(request.receive, self._chat.asked(chat))
        return list(asked.jobs[0].prompt_ids)
