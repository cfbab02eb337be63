"""Converts the engine's failures to errors that say what to do."""

from __future__ import annotations

from collections.abc import Sequence

from lorry.core import Failure, FailureCode
from lorry.errors import (
    GenerationFailed,
    InvalidRequest,
    QueueFull,
    UnsupportedParameter,
)
from lorry_adapters.errors import (
    AdapterBroken,
    HomeUnusable,
    OutOfMemory,
    Problem,
    StoreUnavailable,
)
from lorry_adapters.registry.record import AdapterRef


def error_of(failure: Failure, refs: Sequence[AdapterRef]) -> Exception:
    """`refs` are the request's adapters."""
    reason, param = failure.reason, failure.param
    match failure.code:
        case FailureCode.STEP_FAILED:
            return GenerationFailed(
                f"the step that ran this request failed ({reason}); "
                "send it again, and see the server's log if it fails again"
            )
        case FailureCode.ADAPTER_FAILED:
            return AdapterBroken(
                f"adapter {_named(failure, refs)} cannot be served: computing it failed "
                f"({reason}); upload it again, or another version"
            )
        case FailureCode.FILES_BROKEN:
            said = (
                f"adapter {_named(failure, refs)} cannot be served: {reason}; upload it again, or "
                "another version"
            )
            return AdapterBroken(Problem.within(said, failure.problem))
        case FailureCode.ADAPTER_BROKEN:
            return AdapterBroken(Problem.within(_of_request(failure, refs), failure.problem))
        case FailureCode.STORE_UNUSABLE:
            return HomeUnusable(failure.problem)
        case FailureCode.STORE_AWAY:
            return StoreUnavailable(failure.problem)
        case FailureCode.OUT_OF_MEMORY:
            return OutOfMemory(failure.problem)
        case FailureCode.OVERFLOW:
            return GenerationFailed(_overflow([repr(ref.name) for ref in refs]))
        case FailureCode.GRAMMAR_REFUSED:
            return InvalidRequest(reason, param=param)
        case FailureCode.GRAMMAR_UNSUPPORTED:
            return UnsupportedParameter(reason, param=param)
        case FailureCode.GRAMMARS_BUSY:
            return QueueFull(reason, retry_after=1)
        case FailureCode.GRAMMAR_FAILED:
            return GenerationFailed(reason)
        case FailureCode.ENGINE_FAILED:
            return GenerationFailed("the server failed while it held this request; send it again")
        case FailureCode.ENGINE_STOPPED:
            return GenerationFailed("the server stopped before this request ended")
        case FailureCode.ENGINE_LOST:
            return GenerationFailed(
                "the engine's process ended while it held this request; send it again once the "
                "server has restarted"
            )
        case FailureCode.REPLICA_LOST:
            return GenerationFailed(
                "the replica that ran this request ended before the answer did; send it again"
            )


def _of_request(failure: Failure, refs: Sequence[AdapterRef]) -> str:
    """Return the reason, without names that only other requests may know of the same content."""
    _, middle, why = failure.reason.partition(" cannot be served: ")
    names = ", ".join(f"{ref.name!r} (version {ref.version})" for ref in refs)
    return f"adapter {names}{middle}{why}" if middle and refs else failure.reason


def _named(failure: Failure, refs: Sequence[AdapterRef]) -> str:
    guilty = [ref for ref in refs if ref.digest in failure.digests]
    return ", ".join(f"{ref.name!r} (version {ref.version})" for ref in guilty)


def _overflow(names: Sequence[str]) -> str:
    if not names:
        return "the model's numbers overflowed for this prompt"
    told = f"adapter{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return f"with {told} the model's numbers overflowed; ask for a smaller scale"
