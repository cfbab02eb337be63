"""Failures as values: they keep an error's remedy on the way between two processes."""

from __future__ import annotations

from lorry.advice import message_of
from lorry.api.failures import error_of
from lorry.core import FailureCode, FinishReason, TokenEvent
from lorry.engine.endings import adapter_failure
from lorry.engine.wire import FROM_ENGINE, TokenEvents
from lorry_adapters.errors import AdapterBroken, Problem, Remedy
from lorry_adapters.registry.record import AdapterRef

PROBLEM = Problem("its rank is too large", Remedy.RAISE_MAX_RANK, needed=64, limit=16)


def crossed(error: AdapterBroken) -> TokenEvent:
    """The final event of a request that ends with `error`, after the connection."""
    event = TokenEvent("r", finish=FinishReason.ERROR, failure=adapter_failure(error))
    message = FROM_ENGINE.encode(TokenEvents((event,)))
    (arrived,) = FROM_ENGINE.decode(message).events
    assert arrived == event
    return arrived


def test_a_remedy_crosses_the_connection() -> None:
    failure = crossed(AdapterBroken(PROBLEM, bad_files="d")).failure
    assert failure is not None and failure.code is FailureCode.FILES_BROKEN
    assert failure.digests == ("d",)
    said = message_of(error_of(failure, [AdapterRef("pirate", 1, "d", 1.0)]))
    assert "'pirate'" in said and said.endswith(
        "--max-lora-rank 64 (LORRY_MAX_LORA_RANK) allows it"
    )


def test_a_message_without_a_remedy_crosses_as_it_is() -> None:
    failure = crossed(AdapterBroken("cannot be read")).failure
    assert failure is not None and failure.code is FailureCode.ADAPTER_BROKEN
    assert message_of(error_of(failure, [])) == "cannot be read"
