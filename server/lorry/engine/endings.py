"""Errors that end one request while the others go on."""

from __future__ import annotations

from math import isfinite

from lorry.core import Failure, FailureCode, RowResult
from lorry.errors import InvalidRequest, QueueFull, RequestError, UnsupportedParameter
from lorry_adapters.errors import (
    AdapterBroken,
    AdapterError,
    HomeUnusable,
    OutOfMemory,
    Problem,
    Remedy,
    StorageFull,
    StoreUnavailable,
)


def grammar_failure(error: Exception) -> Failure:
    """Return the failure of a request whose constraint could not be compiled or followed."""
    match error:
        case UnsupportedParameter():
            code = FailureCode.GRAMMAR_UNSUPPORTED
        case InvalidRequest():
            code = FailureCode.GRAMMAR_REFUSED
        case QueueFull():
            code = FailureCode.GRAMMARS_BUSY
        case _:
            code = FailureCode.GRAMMAR_FAILED
    if isinstance(error, RequestError):
        return Failure(code, error.message, error.param)
    return Failure(code, f"the grammar could not be followed: {error}")


def adapter_failure(error: AdapterError) -> Failure:
    """Return the failure of a request whose adapter could not be placed in a slot."""
    digests: tuple[str, ...] = ()
    match error:
        case AdapterBroken(bad_files=str() as digest):
            code, digests = FailureCode.FILES_BROKEN, (digest,)
        case OutOfMemory():
            code = FailureCode.OUT_OF_MEMORY
        case StoreUnavailable():
            code = FailureCode.STORE_AWAY
        case HomeUnusable() | StorageFull():
            code = FailureCode.STORE_UNUSABLE
        case _:
            code = FailureCode.ADAPTER_BROKEN
    # A Problem is a str with attributes, which would be lost on the way to another process.
    message = error.message
    if isinstance(message, Problem) and isinstance(message.remedy, Remedy):
        return Failure(
            code, str(message), digests=digests, remedy=message.remedy, facts=message.facts
        )
    return Failure(code, str(message), digests=digests)


def step_failure(error: Exception) -> Failure:
    """Return the failure of a row for which no adapter is blamed."""
    if isinstance(error, OutOfMemory) and isinstance(error.message, Problem):
        # The memory of adapters, with what to do.
        return adapter_failure(error)
    return Failure(FailureCode.STEP_FAILED, type(error).__name__)


def overflowed(result: RowResult) -> bool:
    """Return whether one of its numbers is not finite."""
    drawn = (one.token for one in result.drawn)
    numbers = (entry.logprob for entry in (*result.prompt, *drawn))
    return not all(map(isfinite, (*numbers, *result.vector)))
