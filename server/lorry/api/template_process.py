"""The program that renders untrusted chat templates: run with `python -m`, not imported.

A template is a program in Jinja. transformers' sandbox keeps it away from Python, but not from
endless loops or strings that double themselves. So one process loads transformers' renderer
and forks another for each template (`lorry.fork_server`), which limits its own time and
memory. `lorry.api.own_template` is the other end.
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
"""Bytes of the rendered text."""

RENDERED, REFUSED = b"r", b"f"
"""The first byte of an answer; the text or the reason follows."""


def load(_: bytes) -> None:
    import transformers.utils.chat_template_utils  # noqa: F401 - so that each fork has it


def serve(connection: Connection, _: None) -> None:
    """Read the template, then render conversations."""
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
        # The other end reports it.
        raise
    except Exception as error:  # noqa: BLE001 - the template is an untrusted program
        return REFUSED + (str(error)[:500] or type(error).__name__).encode(errors="replace")
    if len(answer) > MAX_TEXT:
        return REFUSED + f"it writes more than {MAX_TEXT} bytes".encode()
    return answer


if __name__ == "__main__":
    run(load, serve)
