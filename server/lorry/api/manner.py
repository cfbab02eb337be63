"""How the model of one request writes: in what notation calls, between what marks reasoning."""

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
    """None: an answer has none, or they are not told from it."""
    opened: bool
    """The prompt ends in the midst of them."""
    visible: frozenset[int]
    """Special tokens that are marks of calls or thoughts."""

    def telling(self, *, silent: bool, echo: str) -> Telling:
        """Of one answer."""
        thinking = None
        if self.thoughts is not None:
            thinking = Reader(parting(self.thoughts, opened=self.opened))
        reader = self.tools.reader(self.notation)
        return Telling(reader, thinking=thinking, silent=silent, echo=echo)


def manner_of(prompts: Prompts, tools: Tools, chat: Rendered, *, begun: str, bound: bool) -> Manner:
    """`begun` is what the answer goes on with, if anything.

    An answer that is `bound` by a grammar has no place for reasoning: where the template has
    begun some, the prompt ends it.
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
