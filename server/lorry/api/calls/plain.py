"""JSON without a mark: the whole answer is a call, a list of some, or either in a fence.

Also several one after another with `;` between them, as Llama writes them.
"""

from __future__ import annotations

from lorry.api.calls.notation import Notation, Offered
from lorry.api.calls.source import Reading, Source
from lorry.api.calls.values import calls

FENCES = ("```json", "```tool_call", "```\n")
FENCE = "```"


def start(source: Source, offered: Offered) -> Reading[bool]:
    fenced = (yield from source.peek()) == "`" and (yield from source.takes(*FENCES)) is not None
    yield from source.blanks()
    told = False
    while (yield from source.peek()) in ("{", "["):
        if not (yield from calls(source, offered, marked=False)):
            return told
        told = True
        yield from source.blanks()
        source.settle()
        if (yield from source.peek()) == ";":
            source.take()
            yield from source.blanks()
    if told and fenced:
        yield from source.takes(FENCE)
        source.settle()
    return told


JSON = Notation("json", {}, start)
