"""The program in which strangers' chat templates are rendered: `python -m`, not imported.

A template is a program in Jinja. transformers' sandbox keeps it from Python, not from loops
without end, nor from texts that double themselves; so one process has transformers' renderer
ready and forks another for each template (`lorry.fork_server`), which sets itself bounds on
time and memory. `lorry.api.own_template` is the other end.
"""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any

from lorry.fork_server import at_most, bound_memory, run

SECONDS = 2.0
"""Processor time of one conversation."""

MEMORY = 256 << 20
"""Bytes beyond the renderer's own."""

MAX_TEXT = 16 << 20
"""Bytes of what is rendered."""

RENDERED, REFUSED = b"r", b"f"
"""What an answer begins with: the text follows, or the reason."""


def load(_: bytes) -> None:
    import transformers.utils.chat_template_utils  # noqa: F401 - each fork has it then


def serve(connection: Connection, _: None) -> None:
    """Take the template, then conversations."""
    source = connection.recv_bytes().decode()
    bound_memory(MEMORY)
    while True:
        asked = json.loads(connection.recv_bytes())
        with at_most(SECONDS):
            answer = _rendered(source, asked)
        connection.send_bytes(answer)


def _rendered(source: str, asked: dict[str, Any]) -> bytes:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            conversations=[asked.pop("messages")], chat_template=source, **asked
        )
        answer: bytes = RENDERED + str(text).encode(errors="replace")
    except MemoryError:
        # The other end says what it met.
        raise
    except Exception as error:  # noqa: BLE001 - the template is a stranger's program
        return REFUSED + (str(error)[:500] or type(error).__name__).encode(errors="replace")
    if len(answer) > MAX_TEXT:
        return REFUSED + f"it writes more than {MAX_TEXT} bytes".encode()
    return answer


if __name__ == "__main__":
    run(load, serve)
