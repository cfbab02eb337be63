"""Tokens that are bytes: a tokenizer's decoders, and GPT-2's alphabet."""

from __future__ import annotations

import json
from typing import Any


def decoder_kinds(backend: Any) -> list[str | None]:
    """Return the types of the parts of a tokenizer's decoder, in order."""
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    return [part.get("type") for part in decoder.get("decoders", [decoder])]


def bytes_of_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet, in which every byte is a printable character. Printable bytes stand
    for themselves; the others are U+0100 and following, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(rest)})
    return alphabet
