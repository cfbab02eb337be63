"""The request fields of the prefix cache, for every route whose prompt the model reads."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import Field

from lorry.api.bodies import Body
from lorry.core import Caching

MAX_SALT = 256
"""Characters."""

Salt = Annotated[str, Field(max_length=MAX_SALT)]


class CachingBody(Body):
    cache_prompt: bool | None = Field(
        default=None,
        description="false: the prompt is neither read from the prefix cache nor left in it.",
    )
    cache_salt: Salt | None = Field(
        default=None,
        description="The prefix cache is shared only with requests that have the same.",
    )


class CachingFields(Protocol):
    @property
    def cache_prompt(self) -> bool | None: ...
    @property
    def cache_salt(self) -> str | None: ...


def caching_of(body: CachingFields | None) -> Caching:
    if body is None:
        return Caching()
    return Caching(prompt=body.cache_prompt is not False, salt=body.cache_salt or "")
