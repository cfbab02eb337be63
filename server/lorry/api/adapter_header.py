"""`X-Lorry-Adapter`: the adapter that a request's body names, where a balancer can read it.

A balancer that hashes the header sends an adapter's requests to the same server. The header
chooses nothing: it must repeat a name of the body.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import BaseModel

from lorry.errors import HeaderMismatch
from lorry_adapters.registry.record import MAX_SELECTION

HEADER: Final = "X-Lorry-Adapter"

_SHOWN: Final = 129
"""Characters of a name that a message repeats."""


def named_by(body: object) -> Iterator[tuple[str, str]]:
    """Yield fields of a request's body and the names that they have, as `name` or `name@version`.

    The fields are `model`, and `adapter` for every field that takes an adapter spec. Names are
    those of the body, whether or not there are such adapters.
    """
    parameters = getattr(body, "parameters", None)
    merged = getattr(parameters, "merged_adapters", None)
    specs: list[tuple[str, Any]] = [
        ("model", getattr(body, "model", None)),
        ("adapter", getattr(body, "adapter", None)),
        ("adapter", getattr(parameters, "adapter_id", None)),
        ("adapter", getattr(merged, "ids", None)),
    ]
    for field, spec in specs:
        for one in spec[:MAX_SELECTION] if isinstance(spec, list) else (spec,):
            name = one.get("name") if isinstance(one, dict) else one
            if isinstance(name, str) and name:
                yield field, name


def check_header(values: Sequence[str], body: BaseModel) -> None:
    """Compare the headers of a request with its body.

    `values` are those of every `X-Lorry-Adapter`; an empty one is as none. A value is right if it
    is a name of the body's adapters, with or without the version that the body gives. `model`
    counts if the body has no adapter spec. Bodies of routes that take neither are not compared.

    Raises HeaderMismatch.
    """
    given = [value for value in values if value]
    if not given or not {"adapter", "model"} & type(body).model_fields.keys():
        return
    if len(given) > 1:
        raise HeaderMismatch(
            f"the request has {len(given)} {HEADER} headers; send one name of the body's adapters"
        )
    named = list(named_by(body))
    names = [name for field, name in named if field == "adapter"] or [name for _, name in named]
    if not names:
        raise HeaderMismatch(
            f"{HEADER} is {given[0][:_SHOWN]!r}, but the body names no adapter; "
            "the header alone chooses none"
        )
    if not any(given[0] in (name, name.partition("@")[0]) for name in names):
        listed = ", ".join(repr(name[:_SHOWN]) for name in names)
        raise HeaderMismatch(
            f"{HEADER} is {given[0][:_SHOWN]!r}, but the body asks for {listed}; "
            "send the same name in both, or no such header"
        )
