"""Converts a body's rules about tokens to an answer's rules."""

from __future__ import annotations

from collections.abc import Sequence

from lorry.api.bounds import MAX_STOP_LENGTH
from lorry.api.openai_schema import SharedBody
from lorry.api.prompts import Prompts
from lorry.api.sampling import ids_of
from lorry.constraint import Rules
from lorry.core import SamplingParams
from lorry.errors import InvalidRequest

MAX_BAD_WORDS = 256


async def rules_of(
    body: SharedBody, asked: Sequence[SamplingParams], prompts: Prompts
) -> Rules | None:
    """Return the rules, or None if everything may come. `asked` has the parameters of each prompt,
    which all end at the same tokens. Raises InvalidRequest."""
    least, most = body.min_tokens or 0, min(params.max_new_tokens for params in asked)
    if least > most:
        raise InvalidRequest(
            f"min_tokens must be at most max_tokens: {least} are more than {most}",
            param="min_tokens",
        )
    ends = asked[0].eos_token_ids
    only = ids_of(body.allowed_token_ids, prompts.vocab_size, "allowed_token_ids") or None
    if not (only or body.bad_words or (least and ends)):
        return None
    return Rules(
        vocab_size=prompts.vocab_size,
        least=least,
        ends=ends,
        only=only,
        banned=await _banned(body.bad_words or (), prompts),
        param=_param(body),
    )


async def _banned(words: Sequence[str], prompts: Prompts) -> tuple[tuple[int, ...], ...]:
    """Return each word's tokens at the start of a text and after a space."""
    if len(words) > MAX_BAD_WORDS:
        raise InvalidRequest(
            f"bad_words has {len(words)} words, the most is {MAX_BAD_WORDS}", param="bad_words"
        )
    for word in words:
        if not 0 < len(word.strip()) <= MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"bad_words: a word has 1 to {MAX_STOP_LENGTH} characters, not {len(word.strip())}",
                param="bad_words",
            )
    forms = [form for word in words for form in (word.lstrip(), " " + word.lstrip())]
    found = await prompts.encode_words(forms)
    return tuple(dict.fromkeys(tuple(ids) for ids in found if ids))


def _param(body: SharedBody) -> str:
    given = [name for name in ("allowed_token_ids", "bad_words") if getattr(body, name)]
    return " and ".join(given) or "min_tokens"
