"""`POST /classify`: the labels of a text from a classifier adapter (PEFT's SEQ_CLS).

PEFT's files contain a classifier's head but not the names of its labels. They are read from a
config.json beside them (`id2label`). Without it, labels are named like transformers' default:
LABEL_0, LABEL_1, ...
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from lorry.api.adapters_used import AdapterUsed, used
from lorry.api.bodies import read_body
from lorry.api.bounds import Tokens
from lorry.api.caching import CachingBody, caching_of
from lorry.api.completions_schema import PromptField
from lorry.api.disconnect import until_gone
from lorry.api.docs import json_body
from lorry.api.errors import documented
from lorry.api.fields import Strays
from lorry.api.prompt_list import SpecialTokens, prompts_of
from lorry.api.selection import AdapterField, choices_of, same
from lorry.api.vectors import MAX_INPUTS, Pooled
from lorry.api.visit import place_of
from lorry.api.voices import Voices
from lorry.core import Pooling
from lorry.errors import InvalidRequest


class ClassifyBody(CachingBody):
    strays: ClassVar[Strays] = Strays.HARMLESS

    inputs: PromptField = Field(description="A string, its token ids, or a list of either.")
    adapter: AdapterField = None
    adapter_id: AdapterField = Field(default=None, description="Another name for `adapter`.")
    truncate: Tokens | None = Field(default=None, description="Keep that many of the last tokens.")
    add_special_tokens: SpecialTokens = None
    raw_scores: bool | None = Field(
        default=None, description="Scores before softmax (or sigmoid), as the head returns them."
    )


class Label(BaseModel):
    label: str
    score: float


class ClassifyAnswer(BaseModel):
    predictions: list[Label] | list[list[Label]] = Field(
        description="The likeliest first; a list of such lists for a list of inputs."
    )
    adapters: list[AdapterUsed]


class Classify:
    def __init__(self, *, voices: Voices, pooled: Pooled) -> None:
        self._voices = voices
        self._pooled = pooled

    def router(self) -> APIRouter:
        router = APIRouter(tags=["classify"])
        router.add_api_route(
            "/classify",
            self.classify,
            methods=["POST"],
            summary="Label texts with a classifier adapter",
            responses={
                200: {"model": ClassifyAnswer, "description": "The labels and their scores"},
                **documented(400, 404, 409, 413, 415, 422, 429, 503, 507),
            },
            openapi_extra=json_body(ClassifyBody, {"inputs": "Great!", "adapter": "tickets"}),
            response_model=None,
        )
        return router

    async def classify(self, request: Request) -> Response:
        """The labels that a classifier adapter gives a text, the likeliest first."""
        body = await read_body(request, ClassifyBody)
        return JSONResponse(await until_gone(request.receive, self._answer(request, body)))

    async def _answer(self, request: Request, body: ClassifyBody) -> dict[str, Any]:
        spec = body.adapter if body.adapter is not None else body.adapter_id
        both = body.adapter is not None and body.adapter_id is not None
        if both and not same(body.adapter, body.adapter_id):
            raise InvalidRequest(
                "adapter and adapter_id ask for different adapters; give one of them",
                param="adapter_id",
            )
        voice, choices = await self._voices.of(choices_of(spec))
        prompts = await prompts_of(
            body.inputs,
            voice.prompts,
            param="inputs",
            most=MAX_INPUTS,
            truncate=body.truncate,
            add_special_tokens=body.add_special_tokens,
        )
        found = await self._pooled.ask(
            prompts,
            choices,
            Pooling.CLASSIFY,
            place_of(request),
            param="inputs",
            caching=caching_of(body),
        )
        raw = bool(body.raw_scores)
        predictions = [labels(vector, voice.labels, raw=raw) for vector in found.vectors]
        return {
            "predictions": predictions if is_list(body.inputs) else predictions[0],
            "adapters": used(found.refs),
        }


def is_list(inputs: object) -> bool:
    """Return whether there are several inputs, or a list of one."""
    return isinstance(inputs, list) and not all(type(one) is int for one in inputs)


def probability(score: float) -> float:
    """Return the sigmoid of a single label's score."""
    # Written so that no exponential overflows.
    small = math.exp(-abs(score))
    return 1 / (1 + small) if score >= 0 else small / (1 + small)


def labels(
    scores: Sequence[float], names: Sequence[str] = (), *, raw: bool
) -> list[dict[str, Any]]:
    """Return softmax over several labels, or the sigmoid of a single one; the highest first.
    `names` are used if there is one for each label."""
    values = list(scores)
    if not raw and len(values) == 1:
        values = [probability(values[0])]
    elif not raw:
        top = max(values)
        powers = [math.exp(value - top) for value in values]
        values = [power / sum(powers) for power in powers]
    if len(names) != len(values):
        names = [f"LABEL_{index}" for index in range(len(values))]
    found = [{"label": name, "score": value} for name, value in zip(names, values, strict=True)]
    return sorted(found, key=lambda one: -one["score"])
