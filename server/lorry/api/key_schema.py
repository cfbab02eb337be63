"""Bodies and answers of `/keys` and `/audit`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from lorry.access.api_key import MAX_PATTERNS
from lorry.api.adapter_schema import Description, Name
from lorry.api.bodies import Body
from lorry_adapters.registry.record import MAX_SCALE

_MOST = 10**15

Scopes = list[Literal["generate", "upload", "admin"]]


class LimitsBody(Body):
    """Limits of a key; null is none."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=_MOST)
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=_MOST, description="Of prompts and answers together"
    )
    concurrent_requests: int | None = Field(default=None, ge=1, le=_MOST)
    max_adapters: int | None = Field(
        default=None, ge=0, le=_MOST, description="Adapters that the key sees"
    )
    max_adapter_bytes: int | None = Field(
        default=None, ge=0, le=_MOST, description="All versions of those adapters"
    )
    max_scale: float | None = Field(
        default=None, ge=0, le=MAX_SCALE, description="Largest magnitude of a scale"
    )
    max_rank: int | None = Field(default=None, ge=1, le=_MOST)
    weight: float | None = Field(
        default=None, ge=0.01, le=100, description="Share of the model while others wait; null is 1"
    )


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "must be text without NUL, which no database takes")
    return text


_Description = Annotated[Description, AfterValidator(_without_nul)]

_ADAPTERS = "Names, and prefixes such as legal-*; null is every adapter."


class KeyBody(Body):
    """A new key."""

    name: Name
    scopes: Scopes = Field(min_length=1)
    adapters: list[str] | None = Field(default=None, max_length=MAX_PATTERNS, description=_ADAPTERS)
    limits: LimitsBody | None = None
    description: _Description | None = None


class KeyPatchBody(Body):
    """The changes. Absent fields stay as they are; so do limits that are not given."""

    scopes: Scopes | None = Field(default=None, min_length=1)
    adapters: list[str] | None = Field(default=None, max_length=MAX_PATTERNS, description=_ADAPTERS)
    limits: LimitsBody | None = None
    description: _Description | None = None


class RotateBody(Body):
    keep_old: float = Field(
        default=0.0, ge=0, le=30 * 86_400, description="Seconds for which the old key is still good"
    )


class LimitsView(BaseModel):
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    max_adapters: int | None
    max_adapter_bytes: int | None
    max_scale: float | None
    max_rank: int | None
    weight: float | None


class KeyView(BaseModel):
    id: str
    name: str
    scopes: list[str]
    adapters: list[str] | None
    limits: LimitsView
    description: str
    created_at: str
    updated_at: str


class NewKeyView(KeyView):
    key: str = Field(description="The key itself. It is shown this once and stored nowhere.")


class KeyList(BaseModel):
    keys: list[KeyView]


class AuditView(BaseModel):
    id: int
    at: str
    key: str | None = Field(description="Name of the key that made the change; null without one")
    key_id: str | None
    address: str | None = Field(description="null for what the server did by itself")
    kind: str = Field(description="adapter or key")
    name: str = Field(description="The adapter's or the key's")
    action: str = Field(
        description="added, replaced, changed, removed; created, changed, rotated, revoked"
    )
    digest_before: str | None
    digest_after: str | None
    detail: dict[str, list[Any] | float] = Field(
        description="By field, the value before and after; `keep_old` is in seconds"
    )


class AuditPage(BaseModel):
    entries: list[AuditView]
    next: int | None = Field(description="`before` for the next page; null if there is none")
