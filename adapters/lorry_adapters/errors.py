"""Everything that can be wrong with an adapter, or with what was asked of one.

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
    ├── StorageFull             no room to keep it
    ├── OutOfMemory             no memory to read or check it
    ├── ToolError               what was asked for cannot be done with these adapters
    └── HomeUnusable            the home folder is held by another server,
                                written by a newer one, damaged, not writable, or gone

A message says what is wrong, where, and what to do. No error here knows a
status code: one table in the HTTP layer maps them.
"""

from __future__ import annotations

from collections.abc import Sequence


class AdapterError(Exception):
    """Base of the tree. `param` names the field of the request that is at fault."""

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
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        super().__init__(self.problems[0] + more, param=param)


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
    """An adapter whose name is almost the one that was given."""


class AdapterDisabled(AdapterError):
    param = "adapter"


class AdapterBroken(AdapterError):
    param = "adapter"


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
    """What was asked for cannot be done with these adapters; the message says why."""


class HomeUnusable(AdapterError):
    """Nothing can be stored; the message names the path."""
