"""`/score` and `/rerank`: how well two texts match, by a classifier adapter with one label.

A pair becomes one prompt through the tokenizer's own template for pairs. The shapes are vLLM's
and, if `/rerank` has `texts` instead of `documents`, TEI's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from lorry.api.adapters_used import AdapterUsed, used
from lorry.api.bodies import read_body
from lorry.api.bounds import Texts, Tokens
from lorry.api.caching import CachingBody, caching_of
from lorry.api.classify import probability
from lorry.api.disconnect import until_gone
from lorry.api.docs import json_body
from lorry.api.errors import documented
from lorry.api.fields import Strays
from lorry.api.openai import chosen
from lorry.api.openai_schema import Idle
from lorry.api.prompt_list import Prompt
from lorry.api.selection import AdapterField, BaseNames, User
from lorry.api.shape import BodyShape, NotEmpty, one_of
from lorry.api.vectors import MAX_INPUTS, Pooled, Vectors, VectorsUsage
from lorry.api.visit import place_of
from lorry.api.voices import Voices
from lorry.core import Pooling
from lorry.errors import InvalidRequest
from lorry_adapters.registry.registry import Registry

SomeTexts = Annotated[Texts, NotEmpty]


class RerankDocument(BaseModel):
    text: str


Document = Annotated[dict[str, Any], BodyShape(RerankDocument)]


class _PairsBody(CachingBody):
    strays: ClassVar[Strays] = Strays.HARMLESS

    model: str | None = Field(
        default=None, description="A classifier adapter with one label, or name@version."
    )
    adapter: AdapterField = Field(
        default=None, description="If given, it takes precedence over `model`."
    )
    truncate_prompt_tokens: Tokens | None = Field(
        default=None, description="Keep this many of the first tokens of a pair."
    )
    user: User = None


class ScoreBody(_PairsBody):
    text_1: str | SomeTexts = Field(description="One string for all of `text_2`, or one for each.")
    text_2: str | SomeTexts
    use_activation: bool | None = Field(
        default=None, description="false: the head's score before the sigmoid."
    )


class RerankBody(_PairsBody):
    model_config = ConfigDict(json_schema_extra=one_of("documents", "texts"))

    query: str
    documents: Annotated[list[str | Document], NotEmpty] | None = Field(
        default=None, description="Strings, or objects with a `text`."
    )
    texts: SomeTexts | None = Field(default=None, description="TEI's name; its answer is a list.")
    top_n: int | None = Field(default=None, ge=0, description="Return this many; 0 or absent: all.")
    return_documents: bool | None = None
    return_text: bool | None = None
    raw_scores: bool | None = Field(default=None, description="Before the sigmoid.")
    truncate: Idle = None


class Score(BaseModel):
    index: int
    object: str
    score: float


class ScoreAnswer(BaseModel):
    id: str
    object: str
    created: int
    model: str
    data: list[Score]
    usage: VectorsUsage
    adapters: list[AdapterUsed]


class RerankResult(BaseModel):
    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankAnswer(BaseModel):
    id: str
    model: str
    results: list[RerankResult]
    usage: VectorsUsage
    adapters: list[AdapterUsed]


class TeiRank(BaseModel):
    index: int
    score: float
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    values: list[float]
    found: Vectors
    """The vectors behind the scores."""


class Scores:
    def __init__(
        self,
        *,
        voices: Voices,
        pooled: Pooled,
        registry: Registry,
        base: BaseNames,
    ) -> None:
        self._voices = voices
        self._pooled = pooled
        self._registry = registry
        self._base = base

    def router(self) -> APIRouter:
        router = APIRouter(tags=["classify"])
        query = "How do I cook rice?"
        score = {"model": "relevance", "text_1": query, "text_2": ["Boil it.", "It is blue."]}
        rerank = {"model": "relevance", "query": query, "documents": ["Boil it.", "It is blue."]}
        for path, route, body, answer, summary in (
            (
                "/score",
                self.score,
                json_body(ScoreBody, score),
                ScoreAnswer,
                "Score pairs of texts",
            ),
            (
                "/rerank",
                self.rerank,
                json_body(RerankBody, rerank),
                RerankAnswer | list[TeiRank],
                "Rank texts by how well they answer a query",
            ),
        ):
            for prefix in ("", "/v1"):
                router.add_api_route(
                    prefix + path,
                    route,
                    methods=["POST"],
                    summary=summary,
                    responses={
                        200: {"model": answer, "description": "The scores"},
                        **documented(400, 404, 409, 413, 415, 429, 503, 507),
                    },
                    openapi_extra=body,
                    response_model=None,
                )
        return router

    async def score(self, request: Request) -> Response:
        """A number from 0 to 1 for each pair of texts, by a classifier adapter with one label."""
        body = await read_body(request, ScoreBody)
        firsts = [body.text_1] if isinstance(body.text_1, str) else body.text_1
        seconds = [body.text_2] if isinstance(body.text_2, str) else body.text_2
        if len(firsts) == 1:
            firsts = firsts * len(seconds)
        if len(firsts) != len(seconds) or not seconds:
            raise InvalidRequest(
                f"text_1 has {len(firsts)} texts and text_2 {len(seconds)}; give as many, or one "
                "text_1 for all",
                param="text_1",
            )
        pairs = list(zip(firsts, seconds, strict=True))
        raw = body.use_activation is False
        work = self._scored(request, body, pairs, param="text_2", raw=raw)
        scored = await until_gone(request.receive, work)
        return JSONResponse(
            {
                "id": f"score-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": body.model or self._base.first,
                "data": [
                    {"index": index, "object": "score", "score": value}
                    for index, value in enumerate(scored.values)
                ],
                "usage": scored.found.usage,
                "adapters": used(scored.found.refs),
            }
        )

    async def rerank(self, request: Request) -> Response:
        """The documents in the order of their scores, best first."""
        body = await read_body(request, RerankBody)
        if (body.documents is None) == (body.texts is None):
            raise InvalidRequest("documents is required, or texts in its place", param="documents")
        texts = _texts(body.documents) if body.texts is None else body.texts
        pairs = [(body.query, text) for text in texts]
        param = "documents" if body.texts is None else "texts"
        work = self._scored(request, body, pairs, param=param, raw=bool(body.raw_scores))
        scored = await until_gone(request.receive, work)
        order = sorted(range(len(texts)), key=lambda index: -scored.values[index])
        if body.texts is not None:
            return JSONResponse(
                [
                    {"index": index, "score": scored.values[index]}
                    | ({"text": texts[index]} if body.return_text else {})
                    for index in order
                ]
            )
        shown = body.return_documents is not False
        return JSONResponse(
            {
                "id": f"rerank-{uuid.uuid4().hex}",
                "model": body.model or self._base.first,
                "results": [
                    {"index": index, "relevance_score": scored.values[index]}
                    | ({"document": {"text": texts[index]}} if shown else {})
                    for index in order[: body.top_n or len(order)]
                ],
                "usage": scored.found.usage,
                "adapters": used(scored.found.refs),
            }
        )

    async def _scored(
        self,
        request: Request,
        body: _PairsBody,
        pairs: Sequence[tuple[str, str]],
        *,
        param: str,
        raw: bool,
    ) -> Scored:
        """Score all pairs. Raises InvalidRequest and the adapters' errors."""
        choices = chosen(body, self._base, self._registry)
        voice, choices = await self._voices.of(choices)
        if not pairs or len(pairs) > MAX_INPUTS:
            raise InvalidRequest(
                f"{param} lists {len(pairs)} texts; give from 1 to {MAX_INPUTS}", param=param
            )
        made = await voice.prompts.encode_pairs(pairs)
        limit = body.truncate_prompt_tokens
        prompts = [
            Prompt(second, ids[:limit]) for (_, second), ids in zip(pairs, made, strict=True)
        ]
        found = await self._pooled.ask(
            prompts,
            choices,
            Pooling.CLASSIFY,
            place_of(request),
            param=param,
            caching=caching_of(body),
        )
        labels = len(found.vectors[0])
        if labels != 1:
            raise InvalidRequest(
                f"{found.refs[0].name} has {labels} labels, but a score needs a single one: name "
                "an adapter with one label, or ask /classify",
                param="model",
            )
        values = [vector[0] if raw else probability(vector[0]) for vector in found.vectors]
        return Scored(values, found)


def _texts(documents: Sequence[str | dict[str, Any]] | None) -> list[str]:
    texts = []
    for index, document in enumerate(documents or ()):
        text = document if isinstance(document, str) else document.get("text")
        if not isinstance(text, str):
            raise InvalidRequest(
                f"documents[{index}] must be a string, or an object with a `text`",
                param="documents",
            )
        texts.append(text)
    return texts
