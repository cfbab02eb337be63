"""Errors for Anthropic's clients: routes, statuses, types and shape."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

ROUTES: Final = "/v1/messages"
"""The start of the paths of Anthropic's routes."""

STATUSES: Final = {422: 400, 503: 529}
"""Anthropic's statuses by ours, if they differ."""

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
    """`status` must be one of Anthropic's."""
    return _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
