"""The host names that the server answers to, against DNS rebinding.

A page of evil.example can point its name to 127.0.0.1 after it has loaded. The browser then treats
the server as a part of that page, which may read, upload and delete; only `Host` still shows the
page's name. An address cannot be rebound: if the server listens beyond the machine, every
address is accepted.

Starlette's TrustedHostMiddleware checks only the first of several `Host` headers, treats a final
dot as another name, needs every address listed, and says neither which name was wrong nor
what to do.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

from lorry.api.errors import ForeignHost, HttpError, MalformedHost
from lorry.hostname import ANY, address_of, is_loopback, name_of

_HERE = frozenset({"localhost", "host.docker.internal", "host.containers.internal"})
"""Names of this machine that nobody else can own; the last two are for its containers."""

_HOST = re.compile(r"(\[[^\[\]]+\]|[^\[\]:@/?#\\\s]+)(?::[0-9]*)?")


class Hosts:
    """The accepted values of `Host`. `allowed` is `--allowed-hosts`, `bound` is `--host`."""

    def __init__(self, allowed: Sequence[str], *, bound: str) -> None:
        self._any = ANY in allowed
        machine = name_of(socket.gethostname())
        own = {machine, f"{machine.partition('.')[0]}.local", name_of(bound)}
        self._names = _HERE | own | set(allowed)
        self._endings = (".localhost", *(name[1:] for name in allowed if name.startswith("*.")))
        self._every_address = not is_loopback(bound)

    def refusal(self, given: Sequence[str]) -> HttpError | None:
        """Return why a request with these `Host` headers is refused, or None.

        No header, or an empty one, does not come from a browser: balancers probe in HTTP/1.0."""
        if self._any:
            return None
        if len(given) > 1:
            return MalformedHost(f"the request has {len(given)} Host headers; send one")
        text = given[0].strip() if given else ""
        if not text:
            return None
        match = _HOST.fullmatch(text)
        if match is None:
            return MalformedHost(f"Host must be a name or an address, not {text[:200]!r}")
        if self._answers_to(match[1]):
            return None
        # Untrusted text is not repeated where somebody may paste it into a shell.
        known = re.fullmatch(r"[\w.:\[\]-]{1,253}", match[1], re.ASCII)
        return ForeignHost(
            f"this server does not answer to the Host {match[1][:200]!r}; if that is one of its "
            f"names, start it with --allowed-hosts {name_of(match[1]) if known else 'NAME'}"
        )

    def _answers_to(self, host: str) -> bool:
        address = address_of(host)
        if address is not None and (address.is_loopback or self._every_address):
            return True
        name = name_of(host)
        return name in self._names or name.endswith(self._endings)
