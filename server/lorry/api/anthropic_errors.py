"""What an error is to Anthropic's clients: the routes, the statuses, the types, the shape."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

ROUTES: Final = "/v1/messages"
"""What the paths of Anthropic's routes begin with."""

STATUSES: Final = {422: 400, 503: 529}
"""Theirs for ours, where they differ."""

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


class AnthropicErrorDetail(BaseModel):
    type: str
    message: str
    param: str | None
    code: str
    routes: list[str] | None = None


class AnthropicErrorBody(BaseModel):
    """An error in Anthropic's shape."""

    type: str
    error: AnthropicErrorDetail


def type_of(status: int) -> str:
    """`status` is one of theirs."""
    return _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
