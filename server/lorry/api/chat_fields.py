"""Chat's fields on the routes with a chat in another format: Responses and Messages."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from lorry.api.chat_schema import ChatBody
from lorry.api.openai_schema import SharedBody
from lorry.errors import UnsupportedParameter


def taken(body: SharedBody, *, own: Set[str], answer: str) -> dict[str, Any]:
    """Return the fields of `body` that mean the same in chat. `own` are those that do not; `answer`
    is the route's name for one answer.

    Raises UnsupportedParameter.
    """
    if body.n not in (None, 1):
        raise UnsupportedParameter(f"n: there is one {answer}; leave it out", param="n")
    given = body.model_fields_set & ChatBody.model_fields.keys() - own
    return {name: getattr(body, name) for name in given}


def chat_body(fields: Mapping[str, Any]) -> ChatBody:
    """Make a body of checked fields."""
    return ChatBody.model_construct(set(fields), **fields)


def sent_as(body: SharedBody, names: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of `names`, which are chat's names for the route's fields, without those
    that the client sent under chat's own name."""
    return {name: here for name, here in names.items() if name not in body.model_fields_set}
