"""`POST /embed`, and vectors from `POST /`: the API of TEI, LoRAX and the hub's client.

The vectors are those of `/v1/embeddings`. LoRAX's client, which always sends `parameters`, expects
an object; the others expect a list of vectors.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from lorry.api.bodies import Body, read_body
from lorry.api.caching import CachingBody, CachingFields, caching_of
from lorry.api.classify import is_list
from lorry.api.completions_schema import PromptField
from lorry.api.disconnect import until_gone
from lorry.api.docs import json_body
from lorry.api.embeddings import Dimensions, shaped, unit
from lorry.api.errors import documented
from lorry.api.fields import Strays
from lorry.api.generate_schema import GenerateBody, Parameters
from lorry.api.openai_schema import Idle
from lorry.api.prompt_list import Prompt, SpecialTokens, prompts_of
from lorry.api.selection import AdapterField, choices_of, one_of
from lorry.api.vectors import MAX_INPUTS, Pooled
from lorry.api.visit import place_of
from lorry.api.voices import Voices
from lorry.core import Pooling
from lorry.errors import UnsupportedParameter

Vector = tuple[float, ...]


class FeaturesBody(CachingBody):
    strays: ClassVar[Strays] = Strays.HARMLESS

    inputs: PromptField = Field(description="A string, its token ids, or a list of either.")
    adapter: AdapterField = None
    normalize: bool | None = Field(default=None, description="To length 1; true by default.")
    truncate: bool | None = Field(
        default=None, description="Whether to truncate a text that is too long for the model."
    )
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = Field(
        default=None, description="Which end to truncate: Left or Right."
    )
    prompt_name: str | None = Field(default=None, description="Not served: refused.")
    dimensions: Dimensions | None = None
    pooling: Literal["last", "mean"] | None = Field(
        default=None, description="How the tokens' hidden states are pooled; `last` by default."
    )
    add_special_tokens: SpecialTokens = None
    parameters: Parameters | None = Field(
        default=None, description="LoRAX's; if given, the answer is an object with `embeddings`."
    )
    stream: Idle = None


class FeatureRows(BaseModel):
    """LoRAX's answer: one vector for a string, a list of vectors for a list."""

    embeddings: list[list[float]] | list[float]


class Sentences(Body):
    source_sentence: str
    sentences: list[str]


class SimilarityBody(CachingBody):
    """The body of the hub's client for `sentence_similarity`."""

    strays: ClassVar[Strays] = Strays.HARMLESS

    inputs: Sentences
    adapter: AdapterField = None
    parameters: Idle = None


_ONLY_FEATURES = (
    frozenset(FeaturesBody.model_fields)
    - set(GenerateBody.model_fields)
    - set(CachingBody.model_fields)
)

_ONLY_GENERATE = frozenset({"parameters", "stream", "adapter"})


def asked_at_root(data: dict[str, Any], *, hub: bool) -> type[Body]:
    """Return the kind of a body of `POST /`. `hub`: it comes from the hub's Python client, whose
    generation requests always have `parameters`; a lone text from any other client is a prompt."""
    inputs = data.get("inputs")
    if isinstance(inputs, dict):
        return SimilarityBody
    if data.keys() & _ONLY_FEATURES:
        return FeaturesBody
    if data.keys() & _ONLY_GENERATE:
        return GenerateBody
    return FeaturesBody if hub or isinstance(inputs, list) else GenerateBody


class Features:
    def __init__(self, *, voices: Voices, pooled: Pooled) -> None:
        self._voices = voices
        self._pooled = pooled

    def router(self) -> APIRouter:
        router = APIRouter(tags=["generate"])
        router.add_api_route(
            "/embed",
            self.embed,
            methods=["POST"],
            summary="Embed texts, as TEI and LoRAX do",
            responses={
                200: {"model": list[list[float]] | FeatureRows, "description": "The vectors"},
                **documented(400, 404, 409, 413, 415, 422, 429, 503, 507, tgi=True),
            },
            openapi_extra=json_body(FeaturesBody, {"inputs": "How do I cook rice?"}),
            response_model=None,
        )
        return router

    async def embed(self, request: Request) -> Response:
        """A list of vectors, of length 1 unless `normalize` is false."""
        body = await read_body(request, FeaturesBody)
        return JSONResponse(await until_gone(request.receive, self.answer(request, body)))

    async def answer(self, request: Request, body: FeaturesBody) -> Any:
        alias = None if body.parameters is None else body.parameters.adapter_id
        vectors = await self._vectors(
            request,
            body.inputs,
            one_of(body.adapter, alias),
            _caching_fields(body),
            body,
            body.pooling,
        )
        shown = [shaped(one, body.dimensions, body.normalize) for one in vectors]
        if "parameters" in body.model_fields_set:
            return {"embeddings": shown if is_list(body.inputs) else shown[0]}
        return shown

    async def similarities(self, request: Request, body: SimilarityBody) -> list[float]:
        """The cosine similarity of the source's vector and each sentence's."""
        texts = [body.inputs.source_sentence, *body.inputs.sentences]
        source, *others = map(unit, await self._vectors(request, texts, body.adapter, body))
        return [sum(a * b for a, b in zip(source, one, strict=True)) for one in others]

    async def _vectors(
        self,
        request: Request,
        inputs: object,
        adapter: object,
        caching: CachingFields,
        body: FeaturesBody | None = None,
        pooling: str | None = None,
    ) -> list[Vector]:
        if body is not None and body.prompt_name is not None:
            raise UnsupportedParameter(
                "prompt_name: this base has no named prompts; put the text in inputs",
                param="prompt_name",
            )
        voice, choices = await self._voices.of(choices_of(adapter))
        prompts = await prompts_of(
            inputs,
            voice.prompts,
            param="inputs",
            most=MAX_INPUTS,
            add_special_tokens=None if body is None else body.add_special_tokens,
        )
        if body is not None and body.truncate:
            room = max(1, self._pooled.room(choices))
            left = (body.truncation_direction or "right").lower() == "left"
            prompts = [
                Prompt(one.text, one.ids[-room:] if left else one.ids[:room]) for one in prompts
            ]
        found = await self._pooled.ask(
            prompts,
            choices,
            Pooling(pooling or "last"),
            place_of(request),
            param="inputs",
            caching=caching_of(caching),
        )
        return found.vectors


def _caching_fields(body: FeaturesBody) -> CachingFields:
    """Return the object that has them: the body, or LoRAX's `parameters`."""
    own = body.model_fields_set & CachingBody.model_fields.keys()
    return body if own or body.parameters is None else body.parameters
