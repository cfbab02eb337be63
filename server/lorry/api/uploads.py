"""Multipart uploads, streamed to disk as they arrive.

Memory holds one chunk only, and the limit is checked while the bytes arrive. They go to a folder of
the registry's staging, which is cleaned up if the client leaves in the middle.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from lorry.api.arrival import arriving, check_encoding
from lorry.api.bodies import announced_length, drop_rest, drop_unread
from lorry.api.errors import InvalidFields, MalformedBody, UnsupportedMediaType
from lorry_adapters.errors import StorageFull, UploadTooLarge
from lorry_adapters.lora.weights import CONFIG_FILE, HUB_FILE, WEIGHTS_FILE
from lorry_adapters.lora.words import SOURCES
from lorry_adapters.registry.archive import Upload

_OVERHEAD = 256 << 10
"""Bytes of archive headers, boundaries and fields, beyond the files themselves."""

_MAX_FIELD = 64 << 10
_MAX_FIELDS = 32
_MAX_PARTS = 64
_MAX_BOUNDARY = 200
"""Characters; the standard allows 70."""

_MAX_HEADERS = 16 << 10

_CHUNK = 1 << 20
"""Bytes collected before a thread writes them."""

ARCHIVE = "file"
_ROLES = {
    ARCHIVE: ARCHIVE,
    CONFIG_FILE: CONFIG_FILE,
    WEIGHTS_FILE: WEIGHTS_FILE,
    HUB_FILE: WEIGHTS_FILE,
    **{name: name for name in SOURCES},
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(slots=True)
class Form:
    """A received form: strings by name, files by role, and the problems so far."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def upload(self) -> Upload | None:
        """Return the upload, or None with problems if the files do not make one."""
        files = self.files
        if ARCHIVE in files:
            if len(files) > 1:
                self.problems.append(
                    f"send either an archive as file, or {CONFIG_FILE} and {WEIGHTS_FILE}"
                )
            return Upload(archive=files[ARCHIVE])
        if not files:
            self.problems.append(
                "file is required: an archive of a PEFT folder, or the two files "
                f"{CONFIG_FILE} and {WEIGHTS_FILE}"
            )
            return None
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if name not in files:
                self.problems.append(f"{name} is required beside {', '.join(files)}")
                return None
        return Upload(
            config=files[CONFIG_FILE],
            weights=files[WEIGHTS_FILE],
            words={name: files[name] for name in SOURCES if name in files},
        )


async def read_form(request: Request, folder: Path, max_upload: int) -> Form:
    """Read the request's form; its files go to `folder`.

    Raises:
        UnsupportedMediaType: it is not a form.
        MalformedBody: it is cut off or malformed.
        UploadTooLarge, BodyTooSlow, StorageFull.
        ClientDisconnect: the client left in the middle.
    """
    check_encoding(request)
    limit = max_upload + _OVERHEAD
    too_large = UploadTooLarge(
        f"the upload is larger than the limit of {max_upload} bytes, which --max-upload raises; "
        "most of such adapters are whole embeddings and heads: in bfloat16 they take half"
    )
    length = announced_length(request)
    if length is not None and length > limit:
        await drop_unread(request)
        raise too_large
    parser = _Parser(folder, _boundary(request))
    received = 0
    waiting = bytearray()
    try:
        async for chunk in arriving(request):
            received += len(chunk)
            if received > limit:
                await drop_rest(request)
                raise too_large
            waiting += chunk
            if len(waiting) >= _CHUNK:
                await asyncio.to_thread(parser.feed, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(parser.feed, bytes(waiting))
        return parser.end()
    except MultipartParseError as error:
        await drop_rest(request)
        raise MalformedBody(f"the form cannot be read: {error}") from error
    except OSError as error:
        await drop_rest(request)
        if error.errno in _FULL:
            raise StorageFull(
                "the server's disk is full; nothing of this upload was kept"
            ) from error
        raise
    finally:
        parser.close()


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        shown = kind.decode("latin-1") or "without one"
        raise UnsupportedMediaType(
            f"send the adapter as a form with Content-Type: multipart/form-data, not {shown}"
        )
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedBody("the Content-Type of the form has no boundary")
    if len(boundary) > _MAX_BOUNDARY:
        raise MalformedBody(f"the boundary of the form has {len(boundary)} characters")
    return boundary


class _Parser:
    """Feeds python-multipart's parser and keeps the results. Blocks; one thread at a time."""

    def __init__(self, folder: Path, boundary: bytes) -> None:
        self._folder = folder
        self._form = Form()
        self._parts = 0
        self._ended = False
        self._header = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._text = bytearray()
        self._file: BinaryIO | None = None
        self._dropping = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._grow(
                    self._header, data[start:end], _MAX_HEADERS
                ),
                "on_header_value": lambda data, start, end: self._grow(
                    self._value, data[start:end], _MAX_HEADERS
                ),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._all,
            },
        )

    def feed(self, data: bytes) -> None:
        if data:
            self._parser.write(data)

    def end(self) -> Form:
        self._parser.finalize()
        if not self._ended:
            raise MultipartParseError("it is cut off before its end")
        return self._form

    def close(self) -> None:
        if self._file is not None:
            # After a failed write, closing tries to write the rest once more.
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise MultipartParseError(f"it has more than {_MAX_PARTS} parts")
        self._headers.clear()
        self._text.clear()
        self._dropping = False

    def _grow(self, target: bytearray, data: bytes, limit: int) -> None:
        if len(target) + len(data) > limit:
            raise MultipartParseError(f"a header or a field has more than {limit} bytes")
        target += data

    def _header_end(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        if filename is None:
            if len(self._form.fields) >= _MAX_FIELDS:
                raise MultipartParseError(f"it has more than {_MAX_FIELDS} fields")
            return
        role = self._role(filename.decode("utf-8", "replace"))
        if role is None:
            self._problem(
                f"unknown file {self._name!r}; send file, or {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
        elif role in self._form.files:
            self._problem(f"{role} is given twice")
        else:
            # Our own name: nothing from the client becomes part of a path.
            path = self._folder / f"upload-{len(self._form.files)}"
            self._file = path.open("xb")
            self._form.files[role] = path

    def _role(self, filename: str) -> str | None:
        """Return a file's role: its field's name, or in the field `file` its own name's."""
        own = PurePosixPath(filename.replace("\\", "/")).name
        if self._name in (ARCHIVE, "files") and own in _ROLES and own != ARCHIVE:
            return _ROLES[own]
        return _ROLES.get(self._name)

    def _problem(self, text: str) -> None:
        if text not in self._form.problems:
            self._form.problems.append(text)
        self._dropping = True

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._dropping:
            return
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])
        else:
            self._grow(self._text, data[start:end], _MAX_FIELD)

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            return
        if self._dropping:
            return
        if self._name in self._form.fields:
            self._problem(f"{self._name[:80]} is given twice")
            return
        try:
            self._form.fields[self._name] = self._text.decode()
        except UnicodeDecodeError:
            self._problem(f"{self._name[:80]} is not UTF-8")

    def _all(self) -> None:
        self._ended = True


def raise_problems(form: Form) -> None:
    """Raise InvalidFields if the form has problems."""
    if form.problems:
        param = form.problems[0].split(" ", 1)[0]
        raise InvalidFields(form.problems, param=param)
