"""What there is to learn from: counts, lengths, and what looks wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from lorry.training.examples import ChatExample, Example, PairExample, TextExample
from lorry.training.rendering import LearnedTokens

_NAMED = 3
"""Examples that a warning names."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Counts of a file. Lengths are tokens of a sequence."""

    examples: int
    sequences: int
    tokens: int
    learned_tokens: int
    shortest: int
    median: float
    longest: int
    too_long: int
    """Sequences above the limit, which are left out."""
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def survey(
    examples: Sequence[Example],
    sequences: Sequence[LearnedTokens],
    max_length: int,
    validation: Sequence[Example] = (),
) -> Survey:
    """`max_length`: tokens of a sequence. `validation`: examples that must not be trained on."""
    lengths = sorted(len(one.ids) for one in sequences)
    seen: dict[Any, str] = {}
    twice = []
    for example in examples:
        key = _key(example)
        if key in seen:
            twice.append(f"{example.where} (as {seen[key]})")
        seen.setdefault(key, example.where)
    too_long = [one.where for one in sequences if len(one.ids) > max_length]
    empty = [example.where for example in examples if _is_empty(example)]
    leaked = [example.where for example in validation if _key(example) in seen]
    warnings = (
        _warning(f"left out, as they are longer than {max_length} tokens", too_long),
        _warning("empty answers, from which the adapter learns to say nothing", empty),
        _warning("examples that are there twice", twice),
        _warning("examples that are validated with and trained on", leaked),
    )
    return Survey(
        examples=len(examples),
        sequences=len(sequences),
        tokens=sum(lengths),
        learned_tokens=sum(sum(one.learned) for one in sequences),
        shortest=lengths[0] if lengths else 0,
        median=median(lengths) if lengths else 0,
        longest=lengths[-1] if lengths else 0,
        too_long=len(too_long),
        warnings=tuple(warning for warning in warnings if warning),
    )


def marked(tokens: LearnedTokens, tokenizer: Any) -> str:
    """The text of a sequence, what is learned of it between » and «."""
    parts: list[str] = []
    start = 0
    for at in range(1, len(tokens.ids) + 1):
        if at == len(tokens.ids) or tokens.learned[at] != tokens.learned[start]:
            text = tokenizer.decode(list(tokens.ids[start:at]))
            parts.append(f"»{text}«" if tokens.learned[start] else text)
            start = at
    return "".join(parts)


def _warning(what: str, places: Sequence[str]) -> str:
    if not places:
        return ""
    named = ", ".join(places[:_NAMED]) + (", ..." if len(places) > _NAMED else "")
    return f"{what}: {len(places)} ({named})"


def _key(example: Example) -> Any:
    match example:
        case ChatExample():
            return repr((example.messages, example.learned, example.tools))
        case PairExample():
            return (example.prompt, example.completion)
        case TextExample():
            return example.text


def _is_empty(example: Example) -> bool:
    match example:
        case ChatExample():
            learned = [example.messages[place] for place in example.learned]
            return any(not one["content"].strip() and "tool_calls" not in one for one in learned)
        case PairExample():
            return not example.completion.strip()
        case TextExample():
            return not example.text.strip()
