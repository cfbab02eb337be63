"""The text of a JSON file that people edit: UTF-8, with or without a byte order mark.

Editors on Windows put the mark there. JSON allows a reader to ignore it (RFC 8259, 8.1), and
Python's own parser does not.
"""

from __future__ import annotations

import codecs
from typing import Final

UTF8: Final = "UTF-8"
_MARKS: Final = (
    (codecs.BOM_UTF8, "UTF-8 with a byte order mark"),
    # Before UTF-16, whose mark begins the same way.
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class NotUtf8(ValueError):
    """The actual encoding and what to do, to be read after the file's name."""


def encoding_of(start: bytes) -> str:
    """Return the encoding of a JSON file, given its first four bytes."""
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    # JSON begins with an ASCII character, which UTF-16 encodes in two bytes.
    return marked or ("UTF-16" if 0 in start[:2] else UTF8)


def text_of(data: bytes) -> str:
    """Decode a file. Raises NotUtf8."""
    encoding = encoding_of(data[:4])
    if not encoding.startswith(UTF8):
        raise NotUtf8(f"is {encoding} text, as some programs on Windows write it: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise NotUtf8("is not UTF-8 text") from None
