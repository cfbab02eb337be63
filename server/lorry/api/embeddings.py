"""`POST /v1/embeddings`: a vector for each text, of the base or of an adapter."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from lorry.api.adapters_used import AdapterUsed, used
from lorry.api.bodies import read_body
from lorry.api.bounds import MAX_TOKENS, TokensOrAll, Whole, Within
from lorry.api.caching import CachingBody, caching_of
from lorry.api.completions_schema import PromptField
from lorry.api.disconnect import until_gone
from lorry.api.docs import json_body
from lorry.api.errors import documented
from lorry.api.fields import Strays
from lorry.api.openai import chosen
from lorry.api.prompt_list import SpecialTokens, kept_of, prompts_of
from lorry.api.selection import AdapterField, BaseNames, User
from lorry.api.vectors import MAX_INPUTS, Pooled, VectorsUsage
from lorry.api.visit import place_of
from lorry.api.voices import Voices
from lorry.core import Pooling
from lorry.errors import InvalidRequest
from lorry_adapters.registry.registry import Registry

Dimensions = Annotated[
    int,
    Whole(),
    Within(1, MAX_TOKENS),
    Field(description="Keep this many leading numbers of each vector; its length is 1 again."),
]


class EmbeddingsBody(CachingBody):
    strays: ClassVar[Strays] = Strays.HARMLESS

    input: PromptField = Field(description="A string, its token ids, or a list of either.")
    model: str | None = Field(
        default=None,
        description="The base's name, an adapter's, or name@version; absent: the base.",
    )
    adapter: AdapterField = Field(
        default=None,
        description="Any adapter spec; if given, even as null, it takes precedence over `model`.",
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    pooling: Literal["last", "mean"] | None = Field(
        default=None, description="How the tokens' hidden states are pooled; `last` by default."
    )
    normalize: bool | None = Field(default=None, description="To length 1; true by default.")
    truncate_prompt_tokens: TokensOrAll | None = Field(
        default=None,
        description="Keep this many of a text's last tokens; -1: as many as fit in the context.",
    )
    add_special_tokens: SpecialTokens = None
    user: User = None


class Embedding(BaseModel):
    object: str
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(BaseModel):
    object: str
    data: list[Embedding]
    model: str
    usage: VectorsUsage
    adapters: list[AdapterUsed]


class Embeddings:
    def __init__(
        self, *, voices: Voices, pooled: Pooled, registry: Registry, base: BaseNames
    ) -> None:
        self._voices = voices
        self._pooled = pooled
        self._registry = registry
        self._base = base

    def router(self) -> APIRouter:
        router = APIRouter(tags=["openai"])
        router.add_api_route(
            "/v1/embeddings",
            self.embed,
            methods=["POST"],
            summary="Embed texts",
            responses={
                200: {"model": EmbeddingsAnswer, "description": "The vectors"},
                **documented(400, 404, 409, 413, 415, 429, 503, 507),
            },
            openapi_extra=json_body(EmbeddingsBody, {"input": "How do I cook rice?"}),
            response_model=None,
        )
        return router

    async def embed(self, request: Request) -> Response:
        """One vector for each text, of length 1 unless `normalize` is false."""
        body = await read_body(request, EmbeddingsBody)
        return JSONResponse(await until_gone(request.receive, self._answer(request, body)))

    async def _answer(self, request: Request, body: EmbeddingsBody) -> dict[str, Any]:
        choices = chosen(body, self._base, self._registry)
        voice, choices = await self._voices.of(choices)
        prompts = await prompts_of(
            body.input,
            voice.prompts,
            param="input",
            most=MAX_INPUTS,
            truncate=kept_of(body.truncate_prompt_tokens, self._pooled.room(choices)),
            add_special_tokens=body.add_special_tokens,
        )
        pooling = Pooling(body.pooling or "last")
        found = await self._pooled.ask(
            prompts,
            choices,
            pooling,
            place_of(request),
            param="input",
            caching=caching_of(body),
        )
        encode = _base64 if body.encoding_format == "base64" else list
        data = []
        for index, vector in enumerate(found.vectors):
            shown = shaped(vector, body.dimensions, body.normalize)
            data.append({"object": "embedding", "index": index, "embedding": encode(shown)})
        return {
            "object": "list",
            "data": data,
            "model": body.model or self._base.first,
            "usage": found.usage,
            "adapters": used(found.refs),
        }


def shaped(
    vector: Sequence[float], dimensions: int | None, normalize: bool | None
) -> tuple[float, ...]:
    """Return a vector in the requested form. Raises InvalidRequest."""
    if dimensions is not None and dimensions > len(vector):
        raise InvalidRequest(
            f"dimensions is {dimensions}, but the vectors of this base have {len(vector)} numbers",
            param="dimensions",
        )
    shown = tuple(vector[:dimensions])
    return shown if normalize is False else unit(shown)


def unit(vector: Sequence[float]) -> tuple[float, ...]:
    """Return a vector scaled to length 1; a zero vector is returned as it is."""
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return tuple(value / length for value in vector)


def _base64(vector: Sequence[float]) -> str:
    """Encode like OpenAI: fp32, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
