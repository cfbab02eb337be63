"""Rules for an adapter's name and scale as users write them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from itertools import islice

from lorry_adapters.errors import InvalidAdapterName, InvalidScale
from lorry_adapters.registry.record import MAX_SCALE, VersionRecord

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
NAME = re.compile(rf"{_PART}([/:]{_PART})*")
"""Parts that are joined by `/` or `:`, as in `org/name` and `base:adapter`. No part begins with a
dot, so a name is a path without `..`. No `@`, which separates a version."""

NAME_PREFIX = re.compile(rf"({NAME.pattern}[/:]?)?")
"""The beginning of a name."""

MAX_NAME = 128
"""Characters."""

_RESERVED_END = "/content"
"""`/adapters/{name}/content` is the path of an adapter's files."""

_ALIKE = 0.75
"""`difflib`'s ratio."""

_COMPARED = 300
"""The most names compared: comparing all of them would take too long for a hint."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name in `known` that was probably meant, ignoring case."""
    given = name[:128].lower()
    alike = {
        one.lower(): one
        for one in islice((one for one in known if _begins_or_ends_as(one, given)), _COMPARED)
    }
    close = difflib.get_close_matches(given, alike, n=1, cutoff=_ALIKE)
    return alike[close[0]] if close else None


def _begins_or_ends_as(name: str, given: str) -> bool:
    return name[:1].lower() == given[:1] or name[-1:].lower() == given[-1:]


def check_name(name: str, reserved: frozenset[str]) -> str:
    """Return `name`. Raises InvalidAdapterName. `reserved` contains the base model's names."""
    if len(name) > MAX_NAME or NAME.fullmatch(name) is None:
        shown = name if len(name) <= 140 else name[:140] + "..."
        raise InvalidAdapterName(
            f"{shown!r} is not an adapter name: at most {MAX_NAME} characters, of parts that begin "
            "with a letter or a digit, consist of letters, digits, '.', '_' and '-', and are "
            "joined by '/' or ':'"
        )
    if name.endswith(_RESERVED_END):
        raise InvalidAdapterName(
            f"{name!r} is not an adapter name: it must not end in {_RESERVED_END!r}, which is the "
            "path of an adapter's files"
        )
    if name in reserved:
        raise InvalidAdapterName(f"{name!r} is the base model's name; choose another")
    return name


def check_scale(scale: object, of: str = "scale") -> float:
    """Return `scale` as a float. Raises InvalidScale. A bool is not a number here."""
    limit = f"a finite number from {-MAX_SCALE:g} to {MAX_SCALE:g}"
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise InvalidScale(f"{of} must be {limit}, not a {type(scale).__name__}")
    # The integer may be too large for a float: compare before converting.
    if not -MAX_SCALE <= scale <= MAX_SCALE or not math.isfinite(scale):
        raise InvalidScale(f"{of} must be {limit}, not {str(scale)[:40]}")
    return float(scale)


def check_strength(name: str, version: VersionRecord, scale: float) -> None:
    """Raise InvalidScale if `version` of adapter `name` cannot be used at `scale`."""
    if not version.scalable and scale not in (0.0, 1.0):
        raise InvalidScale(
            f"adapter {name!r} (version {version.version}) is {version.peft_type}, which has no "
            f"strength to scale: use it at scale 1, or at 0 for the base model, not {scale:g}"
        )
