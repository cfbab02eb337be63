"""Why a request ended with an error, as a value that crosses to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lorry_adapters.errors import Problem, Remedy


class FailureCode(StrEnum):
    """Why a request ended with an error."""

    STEP_FAILED = "step_failed"
    """The step that ran it raised. `reason`: the name of the exception's class."""
    ADAPTER_FAILED = "adapter_failed"
    """The computation of its adapters raised: `digests` are at fault. `reason` as above."""
    ADAPTER_BROKEN = "adapter_broken"
    """An adapter cannot be loaded. `reason` is for people."""
    FILES_BROKEN = "files_broken"
    """The files of `digests` are bad. `reason` is for people."""
    STORE_UNUSABLE = "store_unusable"
    """The adapters' folder cannot be read. `reason` is for people."""
    STORE_AWAY = "store_away"
    """The store of the adapters' files does not answer. `reason` is for people."""
    OUT_OF_MEMORY = "out_of_memory"
    """`reason` is for people."""
    OVERFLOW = "overflow"
    """A log-probability or a vector is not finite."""
    GRAMMAR_REFUSED = "grammar_refused"
    """Its grammar or its rules cannot be followed. `reason` is for people."""
    GRAMMAR_UNSUPPORTED = "grammar_unsupported"
    """The tokenizer cannot follow any grammar. `reason` is for people."""
    GRAMMARS_BUSY = "grammars_busy"
    """Too many grammars are in use. `reason` is for people."""
    GRAMMAR_FAILED = "grammar_failed"
    """The server's own fault. `reason` is for people."""
    ENGINE_FAILED = "engine_failed"
    """The engine failed between two steps."""
    ENGINE_STOPPED = "engine_stopped"
    """The engine ended before the request did."""
    ENGINE_LOST = "engine_lost"
    """The engine's process ended before the request did."""
    REPLICA_LOST = "replica_lost"
    """The replica ended before the request did, and others run."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a value. The HTTP side turns it into a message with advice."""

    code: FailureCode
    reason: str = ""
    param: str | None = None
    """The request's field that is at fault."""
    digests: tuple[str, ...] = ()
    """The adapters at fault."""
    remedy: Remedy | None = None
    """What would help, if `reason` is for people."""
    facts: Mapping[str, str | int] = field(default_factory=dict)
    """The remedy's facts."""

    @property
    def problem(self) -> Problem:
        """`reason` with its remedy."""
        return Problem(self.reason, self.remedy, **self.facts)
