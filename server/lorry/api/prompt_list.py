"""A field that takes a string, its token ids, or a list of either, like OpenAI's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from lorry.api.bounds import ALL_ROOM
from lorry.api.prompts import Prompts
from lorry.errors import InvalidRequest

SpecialTokens = Annotated[
    bool | None,
    Field(
        description="Whether the tokenizer adds its special tokens around a text. Absent: yes, "
        "except a beginning of text that the text already has; true adds it anyway."
    ),
]


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    ids: list[int]


def kept_of(truncate: int | None, room: int) -> int | None:
    """Return `truncate_prompt_tokens` as a number of tokens, or None for all. `room` is the number
    that fits. Raises InvalidRequest."""
    if truncate == 0:
        raise InvalidRequest(
            "truncate_prompt_tokens must be -1, or at least 1", param="truncate_prompt_tokens"
        )
    return max(1, room) if truncate == ALL_ROOM else truncate


async def prompts_of(
    given: object,
    tokens: Prompts,
    *,
    param: str,
    most: int,
    truncate: int | None = None,
    add_special_tokens: bool | None = None,
) -> list[Prompt]:
    """Read the prompts of a field. `truncate`: keep that many of the last tokens;
    `add_special_tokens` is for texts, as in `Prompts.encode`. Raises InvalidRequest, naming
    `param`."""
    if isinstance(given, str) or (
        isinstance(given, list) and given and all(type(one) is int for one in given)
    ):
        given = [given]
    if not isinstance(given, list) or not given:
        raise InvalidRequest(
            f"{param} must be a string, a list of strings, token ids or a list of those",
            param=param,
        )
    if len(given) > most:
        raise InvalidRequest(f"{param} lists {len(given)} prompts, the most is {most}", param=param)
    if not all(isinstance(one, str | list) for one in given):
        raise InvalidRequest(
            f"{param} must be a string, a list of strings, token ids or a list of those",
            param=param,
        )
    texts = [one for one in given if isinstance(one, str)]
    encoded = iter(
        await tokens.encode_all(
            texts, param=param, truncate=truncate, add_special_tokens=add_special_tokens
        )
    )
    prompts = []
    for one in given:
        if isinstance(one, str):
            prompts.append(Prompt(one, next(encoded)))
        else:
            ids = await tokens.check_ids(one, param=param)
            if truncate is not None:
                ids = ids[-truncate:]
            prompts.append(Prompt(tokens.decode(ids), ids))
    return prompts
