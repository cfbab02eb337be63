"""Chat's fields on the routes that ask for a chat in other words: Responses and Messages."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from lorry.api.chat_schema import ChatBody
from lorry.api.openai_schema import SharedBody
from lorry.errors import UnsupportedParameter


def taken(body: SharedBody, *, own: Set[str], answer: str) -> dict[str, Any]:
    """The fields of `body` that say in chat what they say here; `own` are those that do not, and
    `answer` is what one answer is called.

    Raises UnsupportedParameter.
    """
    if body.n not in (None, 1):
        raise UnsupportedParameter(f"n: there is one {answer}; leave it out", param="n")
    given = body.model_fields_set & ChatBody.model_fields.keys() - own
    return {name: getattr(body, name) for name in given}


def chat_body(fields: Mapping[str, Any]) -> ChatBody:
    """Of fields that were checked."""
    return ChatBody.model_construct(set(fields), **fields)


def sent_as(body: SharedBody, names: Mapping[str, str]) -> dict[str, str]:
    """Of `names`, what chat calls fields of the route, those that the client did not send under
    chat's own name."""
    return {name: here for name, here in names.items() if name not in body.model_fields_set}
