"""Shared by all requests for the engine: text, labels or vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from lorry.api.failures import error_of
from lorry.core import FinishReason, TokenEvent
from lorry.errors import GenerationFailed, RequestError, ShuttingDown
from lorry_adapters.errors import Problem
from lorry_adapters.registry.record import AdapterChoice, AdapterRef


def pinned(choices: Sequence[AdapterChoice], refs: Sequence[AdapterRef]) -> list[AdapterChoice]:
    """Return choices with exactly the versions and scales of `refs`, so that a change between two
    prompts does not split one request."""
    return [
        replace(choice, name=ref.name, version=ref.version, scale=ref.scale)
        for choice, ref in zip(choices, refs, strict=True)
    ]


@contextmanager
def naming(param: str) -> Iterator[None]:
    """Name `param`, the prompt's field, in the engine's errors about the prompt."""
    try:
        yield
    except RequestError as error:
        if error.param == "prompt":
            error.param = param
        raise


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Translate the field in an error to the client's own field, by `names`."""
    try:
        yield
    except RequestError as error:
        old = error.param
        if old is not None and old in names:
            if error.message.startswith(old):
                renamed = names[old] + error.message[len(old) :]
                error.message = Problem.within(renamed, error.message)
            error.param = names[old]
        raise


def failure(event: TokenEvent, refs: Sequence[AdapterRef]) -> Exception:
    """Return the error for a request's last event without an answer. `refs` are its adapters."""
    if event.failure is not None:
        return error_of(event.failure, refs)
    if event.finish is FinishReason.CANCELLED:
        # Not cancelled here: the grace period of a shutdown was over.
        return ShuttingDown("the server shut down before the answer was complete")
    return GenerationFailed("the engine ended the request without a reason")
