"""How the model writes in one request: the notation of its calls and the marks of its reasoning."""

from __future__ import annotations

from dataclasses import dataclass

from lorry.api.calls.notation import Notation
from lorry.api.calls.reader import Reader
from lorry.api.chats import Rendered
from lorry.api.prompts import Prompts
from lorry.api.reasoning import Thoughts, parting
from lorry.api.telling import Telling
from lorry.api.tools import Tools


@dataclass(frozen=True, slots=True)
class Manner:
    prompt: str
    tools: Tools
    notation: Notation
    thoughts: Thoughts | None
    """None if an answer has no reasoning, or if it is not separated."""
    opened: bool
    """True if the prompt ends inside the reasoning."""
    visible: frozenset[int]
    """Special tokens that mark calls or reasoning."""

    def telling(self, *, silent: bool, echo: str) -> Telling:
        """Return the `Telling` of one answer."""
        thinking = None
        if self.thoughts is not None:
            thinking = Reader(parting(self.thoughts, opened=self.opened))
        reader = self.tools.reader(self.notation)
        return Telling(reader, thinking=thinking, silent=silent, echo=echo)


def manner_of(prompts: Prompts, tools: Tools, chat: Rendered, *, begun: str, bound: bool) -> Manner:
    """`begun` is the text that the answer continues, if any.

    An answer that is `bound` by a grammar has no place for reasoning: if the template has begun
    some, the prompt ends it.
    """
    prompt, thoughts = chat.text, chat.thoughts
    opened = thoughts is not None and (thoughts.open_in(prompt) or thoughts.continued_in(begun))
    if bound and thoughts is not None:
        if opened:
            prompt = f"{prompt.rstrip()}\n{thoughts.closer}\n\n"
        thoughts = None
    marks = (*(chat.notation.marks if tools.free else ()), *(thoughts.marks if thoughts else ()))
    visible = prompts.special_ids_of(marks)
    return Manner(prompt, tools, chat.notation, thoughts, opened, visible)
