"""Failures of the engine as the errors of requests."""

from __future__ import annotations

from lorry.api.failures import error_of
from lorry.core import Failure, FailureCode
from lorry_adapters.registry.record import AdapterRef


def test_a_broken_adapter_is_named_as_the_request_named_it() -> None:
    """The engine may have met the content under a name that this request's key does not see."""
    reason = "adapter 'secret' (version 3) cannot be served: its file is damaged"
    failure = Failure(FailureCode.ADAPTER_BROKEN, reason)
    said = str(error_of(failure, [AdapterRef("mine", 2, "sha256:a", 1.0)]))
    assert said == "adapter 'mine' (version 2) cannot be served: its file is damaged"
