"""All errors about adapters, and about requests for one.

    AdapterError
    ├── InvalidAdapter          the files; carries every problem found, not only the first
    ├── InvalidAdapterName      a name with a slash, the base model's name, ...
    ├── InvalidScale            not finite, or beyond 16 in magnitude
    ├── InvalidSelection        nine adapters in a spec, or the same one twice
    ├── UnsupportedUpload       not an archive, a pickle only, two configs
    ├── UploadTooLarge          more bytes than the limit
    ├── UnknownAdapter          no adapter or no version of that name
    ├── AdapterDisabled         registered, switched off
    ├── AdapterBroken           registered, its files no longer load
    ├── AdapterConflict         the name exists with other content
    ├── DigestMismatch          If-Match named a digest that is no longer current
    ├── ForbiddenSource         a source outside the allowed roots
    ├── StorageFull             no room to store it
    ├── OutOfMemory             no memory to read or check it
    ├── ToolError               the tool cannot do this with these adapters
    ├── CatalogUnavailable      the catalog that several servers share does not answer
    ├── StoreUnavailable        the object store does not answer, or cannot be written
    └── HomeUnusable            the home folder is held by another server,
                                written by a newer one, damaged, not writable, or gone

A message says what is wrong and where. No error here knows a status code, a command or a setting of
the server: a message that is a `Problem` names a remedy with its facts, and the HTTP layer and the
command line turn that into advice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Self


class Remedy(StrEnum):
    """Possible remedies. Each docstring names the facts."""

    ENABLE = "enable"
    """The adapter: name."""
    REPLACE = "replace"
    """Add a new version under the same name."""
    RAISE_MAX_RANK = "raise_max_rank"
    """The server's limit: needed, limit."""
    RAISE_ADAPTER_MEMORY = "raise_adapter_memory"
    """The server's limit on the memory of all adapters: needed, limit, in bytes."""
    RAISE_MAX_UPLOAD = "raise_max_upload"
    """The server's limit: limit, in bytes."""
    OTHER_HOME = "other_home"
    """Use another home folder: path is the unusable one."""
    MOVE_CATALOG = "move_catalog"
    """Move a home's own catalog to the one that servers share."""
    ADOPT = "adopt"
    """Make adapters of stored files without an adapter: count."""
    SERVE_AS_BASE = "serve_as_base"
    """The files are a model's."""
    UNQUANTIZED_BASE = "unquantized_base"
    """Serve the base with its original weights."""
    GROW_BASE = "grow_base"
    """Serve the base with more tokens: base, needed, limit."""
    CONVERT = "convert"
    """Write the adapter in PEFT's layout."""
    CONVERT_START = "convert_start"
    """Make a plain LoRA of it, with the adapter as it was before the first step."""
    KEEP_TASK = "keep_task"
    """Make an adapter of each of its tasks."""
    KEEP_TEXT = "keep_text"
    """Make an adapter of its text part."""
    GROUP_EXPERTS = "group_experts"
    """Put the columns of its experts in PEFT's order."""
    UNPICKLE = "unpickle"
    """If the file is trusted, write the weights as safetensors: name of the file."""
    FOLLOW_LINKS = "follow_links"
    """Pack the files behind the links."""
    FILL_HOLES = "fill_holes"
    """Pack sparse files whole."""
    GIVE = "give"
    """A missing argument: argument."""
    LEAVE_OUT = "leave_out"
    """A superfluous argument: argument."""


class Problem(str):
    """A message about what is wrong and where, with a remedy and its facts."""

    __slots__ = ("facts", "remedy")

    remedy: StrEnum | None
    """A `Remedy`, or one of the server's."""
    facts: Mapping[str, str | int]

    def __new__(cls, text: str, remedy: StrEnum | None = None, **facts: str | int) -> Self:
        problem = super().__new__(cls, text)
        problem.remedy, problem.facts = remedy, facts
        return problem

    @classmethod
    def within(cls, text: str, problem: str) -> Self:
        """Return `text`, which contains `problem`, with that problem's remedy."""
        if not isinstance(problem, Problem):
            return cls(text)
        return cls(text, problem.remedy, **problem.facts)


class AdapterError(Exception):
    """Base of the tree. `param` names the request's field at fault."""

    param: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if param is not None:
            self.param = param


class InvalidAdapter(AdapterError):
    """The files do not make an adapter that this base can serve exactly."""

    param = "file"

    def __init__(self, problems: Sequence[str], *, param: str | None = None) -> None:
        self.problems = tuple(problems)
        assert self.problems
        super().__init__(summary(self.problems), param=param)


def summary(problems: Sequence[str]) -> str:
    """Return the first problem and the number of others."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Problem.within(problems[0] + more, problems[0])


class InvalidAdapterName(AdapterError):
    param = "name"


class InvalidScale(AdapterError):
    param = "scale"


class InvalidSelection(AdapterError):
    param = "adapter"


class UnsupportedUpload(AdapterError):
    param = "file"


class UploadTooLarge(AdapterError):
    param = "file"


class UnknownAdapter(AdapterError):
    param = "adapter"
    meant: str | None = None
    """An adapter with a similar name."""


class AdapterDisabled(AdapterError):
    param = "adapter"


class AdapterBroken(AdapterError):
    """`bad_files`: the digest of bad files that are not marked as broken yet."""

    param = "adapter"

    def __init__(
        self, message: str, *, param: str | None = None, bad_files: str | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.bad_files = bad_files


class AdapterConflict(AdapterError):
    param = "name"


class DigestMismatch(AdapterError):
    param = "If-Match"


class ForbiddenSource(AdapterError):
    param = "source"


class StorageFull(AdapterError):
    param = "file"


class OutOfMemory(AdapterError):
    param = "file"


class ToolError(AdapterError):
    """The tool cannot do this with these adapters; the message says why."""


class CatalogUnavailable(AdapterError):
    """Nothing can be changed now; the message names the catalog. A change whose end was not heard
    may have happened."""


class StoreUnavailable(AdapterError):
    """Contents can be neither stored nor fetched now; the message names the store."""


class HomeUnusable(AdapterError):
    """Nothing can be stored; the message names the path."""
