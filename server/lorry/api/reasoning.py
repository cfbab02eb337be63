"""Separates a model's reasoning from the answer that follows it.

Models that reason do so first, between two marks; some templates write the first mark themselves.
The text between them becomes `reasoning_content` and is not part of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorry.api.calls.reader import Readings, text_only
from lorry.api.calls.source import Reading, Source


@dataclass(frozen=True, slots=True)
class Thoughts:
    """The marks around a model's reasoning."""

    opener: str
    closer: str

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks that may be special tokens, which would otherwise be hidden."""
        return self.opener.strip(), self.closer.strip()

    def open_in(self, prompt: str) -> bool:
        """Return whether a prompt ends inside reasoning: right behind its first mark."""
        return prompt.rstrip().endswith(self.opener.rstrip())

    def continued_in(self, text: str) -> bool:
        """Return whether an answer to be continued ends inside its reasoning."""
        return text.rfind(self.opener) > text.rfind(self.closer)


THOUGHTS = {
    "think": Thoughts("<think>", "</think>"),
    "mistral": Thoughts("[THINK]", "[/THINK]"),
    "granite": Thoughts("Here is my thought process:", "Here is my response:"),
    "gemma": Thoughts("<|channel>thought\n", "<channel|>"),
    "seed": Thoughts("<seed:think>", "</seed:think>"),
}
"""By the name of the parser: Qwen 3, DeepSeek R1, SmolLM 3 and most others; Magistral; Granite
3.2; Gemma 4; Seed-OSS."""

Choice = Callable[[str], Thoughts | None]
"""Returns the marks of a model's reasoning, given its chat template."""


def thoughts_in(template: str) -> Thoughts | None:
    """Return the marks that a template contains."""
    return next((one for one in THOUGHTS.values() if one.closer in template), None)


def choice_of(name: str) -> Choice:
    """`name`: auto, none, or one of `THOUGHTS`."""
    if name == "auto":
        return thoughts_in
    chosen = THOUGHTS.get(name)
    return lambda template: chosen


def parting(thoughts: Thoughts, *, opened: bool) -> Readings:
    """`opened`: the prompt ends inside the reasoning. Blanks at the ends of both are removed."""

    def readings(source: Source) -> Reading[None]:
        yield from source.blanks()
        if opened or (yield from source.takes(thoughts.opener)) is not None:
            yield from source.blanks()
            source.settle()
            blanks = ""

            def think(text: str) -> None:
                nonlocal blanks
                said = (blanks + text).rstrip()
                blanks = (blanks + text)[len(said) :]
                source.think(said)

            yield from source.until(thoughts.closer, think)
            source.settle()
            yield from source.blanks()
            source.settle()
        source.say(source.unsettled())
        yield from text_only(source)

    return readings
