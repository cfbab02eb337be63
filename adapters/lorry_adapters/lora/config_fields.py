"""The fields of an `adapter_config.json`, taken one by one, with all problems.

Every field either has exactly PEFT's meaning or is refused by name; no meaningful field is ignored.
Each method defines which fields are meaningful (`methods/`).

The bytes are untrusted: any of them quickly result in `Fields` or `InvalidAdapter`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.json_text import NotUtf8, text_of
from lorry_adapters.lora.problems import shown

MAX_CONFIG: Final = 1 << 20
"""Bytes. A rank for every module of the largest models takes a tenth of it."""

MAX_RANK: Final = 1 << 16
MAX_ALPHA: Final = 1e6

HARMLESS: Final = frozenset(
    {
        "auto_mapping",  # the class of the base, for a hub page
        "inference_mode",
        "peft_version",
        "revision",
        "runtime_config",
    }
)
"""Keys of any method that do not affect the adapter's function."""

SERVED_TASKS: Final = ("CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION")
"""Text, labels and vectors: `/generate`, `/classify` and `/v1/embeddings`."""


class Fields:
    """One config. `problems` grows as fields are taken; `raise_problems` ends it."""

    def __init__(self, data: bytes) -> None:
        """Raises InvalidAdapter if `data` is not a JSON object."""
        self.values: Mapping[str, Any] = _read_json(data)
        self._taken: set[str] = set()
        self.problems: list[str] = []

    def raw(self, key: str) -> Any:
        """Return the raw value, or None if there is none. Counts as taken."""
        self._taken.add(key)
        return self.values.get(key)

    def take(
        self, key: str, check: Callable[[Any], Any], default: Any, *, required: bool = False
    ) -> Any:
        """Return the checked value, or `default` if the key is missing, null or wrong."""
        self._taken.add(key)
        value = self.values.get(key)
        if value is None:
            if required and key in self.values:
                self.problems.append(f"{key} is null")
            return default
        try:
            return check(value)
        except Wrong as wrong:
            self.problems.append(f"{key} is {shown(value)}: {wrong}")
            return default

    def inside(self, key: str) -> Fields | None:
        """Return the fields of the object at `key`, with the same list of problems, or None if the
        value is not an object."""
        value = self.raw(key)
        if not isinstance(value, dict):
            return None
        inner = Fields.__new__(Fields)
        inner.values, inner._taken, inner.problems = value, set(), self.problems
        return inner

    def complains_of(self, key: str) -> bool:
        return any(problem.startswith(key) for problem in self.problems)

    def refuse_the_rest(self, harmless: frozenset[str], not_served: Mapping[str, str]) -> None:
        """Add a problem for every meaningful key that was not taken. `not_served`: the feature of a
        key, and after a semicolon what to do instead."""
        for key, value in self.values.items():
            if key in self._taken or key in HARMLESS or key in harmless:
                continue
            if not means_something(value):
                continue
            feature, _, cure = not_served.get(key, "").partition("; ")
            if feature:
                said = f"{feature} is not served yet: {key} is {shown(value)}"
                self.problems.append(f"{said}; {cure}" if cure else said)
            else:
                self.problems.append(f"unknown key {shown(key)} with the value {shown(value)}")

    def base_model(self) -> str | None:
        return self.take("base_model_name_or_path", name, None)  # type: ignore[no-any-return]

    def task_type(self) -> str:
        """Return a served task; a config without one is for a causal language model."""
        value = self.raw("task_type")
        if value is None:
            return "CAUSAL_LM"
        if value not in SERVED_TASKS:
            self.problems.append(
                f"adapters of task_type {shown(value)} are not served; "
                f"{', '.join(SERVED_TASKS)} are"
            )
            return "CAUSAL_LM"
        return str(value)


class Wrong(Exception):
    """Describes the expected value."""


def means_something(value: object) -> bool:
    return value not in (None, False, "", 0) and value != [] and value != {}


class _Duplicate(ValueError):
    pass


def _read_json(data: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise _Duplicate(f"it contains the key {shown(key)} twice")
            found[key] = value
        return found

    def no_constant(name: str) -> float:
        raise _Duplicate(f"{name} is not JSON")

    if len(data) > MAX_CONFIG:
        raise InvalidAdapter(
            [f"adapter_config.json has {len(data)} bytes, more than {MAX_CONFIG}: not a config"]
        )
    try:
        value = json.loads(
            text_of(data), object_pairs_hook=no_duplicates, parse_constant=no_constant
        )
    except NotUtf8 as error:
        raise InvalidAdapter([f"adapter_config.json {error}"]) from None
    except RecursionError:
        raise InvalidAdapter(["adapter_config.json is nested too deeply"]) from None
    except ValueError as error:
        raise InvalidAdapter([f"adapter_config.json cannot be read as JSON: {error}"]) from None
    if not isinstance(value, dict):
        raise InvalidAdapter([f"adapter_config.json is {shown(value)}, not a JSON object"])
    return value


def rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise Wrong(f"must be a whole number from 1 to {MAX_RANK}")
    return value


def alpha(value: Any) -> float:
    # The bound comes first: a huge int cannot be converted, and NaN fails every comparison.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong("must be a number")
    if not -MAX_ALPHA <= value <= MAX_ALPHA:
        raise Wrong(f"must be at most {MAX_ALPHA:g} in magnitude")
    return float(value)


def seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise Wrong("must be a whole number")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong("must be true or false")
    return value


def name(value: Any) -> str | None:
    if not isinstance(value, str) or len(value) > 1024 or not _encodable(value):
        raise Wrong("must be a string of at most 1024 characters")
    return value or None


def _encodable(text: str) -> bool:
    """Return whether a text can be stored: JSON can escape half a surrogate pair."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def names(value: Any) -> tuple[str, ...] | str:
    if isinstance(value, str) and _encodable(value):
        return value
    if not isinstance(value, list) or not all(
        isinstance(one, str) and one and _encodable(one) for one in value
    ):
        raise Wrong("must be a list of module names, or one string")
    return tuple(value)


def listed(what: str) -> Callable[[Any], tuple[str, ...]]:
    """Like `names`, without a single string. `what`: the kind of names, for the error."""

    def check(value: Any) -> tuple[str, ...]:
        found = names(value)
        if isinstance(found, str):
            raise Wrong(f"must be a list of {what}")
        return found

    return check


def plain_names(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) and value else value or []
    if not isinstance(names, list) or not all(
        isinstance(one, str) and re.fullmatch(r"[A-Za-z0-9_.]{1,256}", one) for one in names
    ):
        raise Wrong('must be plain names of module lists, as "layers" or "h"')
    return tuple(names)


def indices(value: Any) -> frozenset[int] | None:
    layers = [value] if isinstance(value, int) else value
    if not isinstance(layers, list) or not all(
        isinstance(one, int) and not isinstance(one, bool) for one in layers
    ):
        raise Wrong("must be a layer's index or a list of them")
    return frozenset(layers) if layers else None


def mapping(check: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def checked(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Wrong("must be an object of module names and numbers")
        found = {}
        for key, number in value.items():
            if not key or not _encodable(key):
                raise Wrong(f"{shown(key)} names no module")
            try:
                found[key] = check(number)
            except Wrong as wrong:
                raise Wrong(f"{shown(key)} {wrong}") from None
        return found

    return checked


def token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 31 for one in value
    ):
        raise Wrong("must be a list of token ids")
    return tuple(value)
