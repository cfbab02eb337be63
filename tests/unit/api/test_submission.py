"""What text and vectors do alike: a request keeps its versions, its field's name, its error."""

from __future__ import annotations

import pytest

from lorry.api.submission import failure, naming, pinned
from lorry.core import Failure, FailureCode, FinishReason, TokenEvent
from lorry.errors import (
    DoesNotFit,
    GenerationFailed,
    InvalidRequest,
    InvocationMissing,
    PromptTooLong,
    RequestError,
    ShuttingDown,
)
from lorry_adapters.registry.record import AdapterChoice, AdapterRef


def test_a_request_keeps_what_its_first_prompt_got() -> None:
    choices = [AdapterChoice("a"), AdapterChoice("b", scale=0.5), AdapterChoice("c", digest="d")]
    refs = [AdapterRef("a", 3, "x", 0.7), AdapterRef("b", 1, "y", 0.5), AdapterRef("c", 0, "d", 1)]
    assert pinned(choices, refs) == [
        AdapterChoice("a", 3, 0.7),
        AdapterChoice("b", 1, 0.5),
        AdapterChoice("c", 0, 1, "d"),
    ]


@pytest.mark.parametrize(
    ("error", "param"),
    [
        (PromptTooLong("x"), "messages"),
        (InvalidRequest("x", param="prompt"), "messages"),
        (InvalidRequest("x", param="seed"), "seed"),
        (InvocationMissing("x"), "adapter"),
        (DoesNotFit("x"), None),
    ],
)
def test_an_error_names_the_prompts_own_field(error: RequestError, param: str | None) -> None:
    with pytest.raises(type(error)) as caught, naming("messages"):
        raise error
    assert caught.value is error
    assert error.param == param


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (TokenEvent("r", finish=FinishReason.CANCELLED), ShuttingDown),
        (TokenEvent("r", finish=FinishReason.ERROR), GenerationFailed),
        (
            TokenEvent(
                "r", finish=FinishReason.ERROR, failure=Failure(FailureCode.GRAMMAR_REFUSED, "x")
            ),
            InvalidRequest,
        ),
    ],
)
def test_an_end_without_an_answer_has_its_error(event: TokenEvent, kind: type[Exception]) -> None:
    assert type(failure(event, ())) is kind
