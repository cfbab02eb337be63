"""JSON without a mark: the whole answer is a call, a list of calls, or either in a fence.

Calls may also be separated by `;`, as Llama writes them.
"""

from __future__ import annotations

from lorry.api.calls.notation import Notation, Offered
from lorry.api.calls.source import Reading, Source
from lorry.api.calls.values import close, row

FENCES = ("```json", "```tool_call", "```\n")
FENCE = "```"


def start(source: Source, offered: Offered) -> Reading[bool]:
    fenced = (yield from source.peek()) == "`" and (yield from source.takes(*FENCES)) is not None
    told = yield from row(source, offered, marked=False)
    if told and fenced:
        yield from close(source, FENCE)
    return told


JSON = Notation("json", {}, start)
