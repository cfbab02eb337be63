"""Renders chat templates of adapters and requests, each in a process of its own.

A template's source is an untrusted program; `lorry.api.template_process` lists its limits.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from lorry.api.template_process import MEMORY, RENDERED, SECONDS
from lorry.errors import InvalidRequest, UnsupportedParameter
from lorry.forks import ForkFailed, Forks

_KEPT = 16
"""Templates whose processes are kept."""

_PATIENCE = 120.0
"""Seconds. The processes limit their own processor time; this is for a process that the machine
does not run at all."""


class TooMuch(InvalidRequest):
    """Rendering took more time or memory than the limit."""


class OwnTemplates:
    """Thread-safe. The process with the renderer starts at the first conversation."""

    def __init__(self) -> None:
        self._forks = Forks("lorry.api.template_process", lambda: b"", what="chat templates")
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Own] = OrderedDict()

    def render(self, source: str, asked: Mapping[str, Any]) -> str:
        """Render a conversation. `asked` has `messages` and other arguments of transformers'
        `render_jinja_template`, as JSON. Blocks.

        Raises:
            ValueError: the template is malformed, or refuses the messages.
            TooMuch.
        """
        with self._lock:
            own = self._kept.pop(source, None) or _Own(source)
            self._kept[source] = own
            # A dropped process ends with its last conversation.
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return own.render(self._forks, json.dumps(asked).encode())

    def close(self) -> None:
        with self._lock:
            self._kept.clear()
        self._forks.close()


class _Own:
    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def render(self, forks: Forks, message: bytes) -> str:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = forks.connect()
                    self._connection.send_bytes(self._source.encode(errors="replace"))
                self._connection.send_bytes(message)
                if not self._connection.poll(_PATIENCE):
                    raise EOFError
                answer = self._connection.recv_bytes()
            except ForkFailed as error:
                raise UnsupportedParameter(f"messages: {error}", param="messages") from error
            except (EOFError, OSError):
                self._connection = None
                raise TooMuch(
                    f"the chat template takes more than {SECONDS:g} s of processor time or "
                    f"{MEMORY >> 20} MiB",
                    param="messages",
                ) from None
        text = answer[1:].decode()
        if answer[:1] != RENDERED:
            raise ValueError(text)
        return text
