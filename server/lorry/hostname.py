"""Names and addresses of machines, sites and paths, in settings and headers."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

ANY = "*"

LONGEST = 100
"""Characters of an address, with room for the name of an interface."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]*")

_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")

_OWN_PORTS = {"http": ":80", "https": ":443"}
"""Ports that browsers omit."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}(/[^/\\?#*\[\]\s]+)*")

_STORE = re.compile(r"[a-z][a-z0-9+.-]*://[^\s@?#\\]+")

HUB = "hub"
"""The resolver for names such as `org/name`."""

_ORG = re.compile(r"hub:[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_PLACE = re.compile(r"(s3|gs|https)://[^\s@?#\\]+")

_NAME = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Return `127.0.0.1`, `::1` or, as in URLs, `[::1]` as an address; None for a name."""
    return _address_of(host) if len(host) <= LONGEST else None


@lru_cache(1024)
def _address_of(host: str) -> IPv4Address | IPv6Address | None:
    # Called several times per request, mostly with the same few values.
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        found = ip_address(bare)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens on `host`."""
    address = address_of(host)
    return name_of(host) == "localhost" if address is None else address.is_loopback


def name_of(host: str) -> str:
    """Return the canonical spelling of a name or address, which ignores case and a final dot."""
    address = address_of(host)
    return str(address) if address is not None else host.lower().removesuffix(".")


def allowed_host(text: str) -> str:
    """Return a name, an address, `*.example.com` for all names below one, or `*` in canonical
    spelling. Raises ValueError, also for a port or a whole URL."""
    name = name_of(text.strip())
    if name == ANY or address_of(name) is not None or _NAME.fullmatch(name):
        return name
    raise ValueError(text)


def is_host(host: str) -> bool:
    """True if `host` is a name in ASCII, or an address without brackets."""
    host = host.lower().removesuffix(".")
    if ":" in host:
        return address_of(host) is not None and "%" not in host
    return _NAME.fullmatch(host) is not None and not host.startswith("*")


def split_port(text: str) -> tuple[str, int | None]:
    """Split `host:8443` or `[::1]:8443`. The host is canonical. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or address_of(text) is not None:
        return name_of(text), None
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(text)
    return name_of(host), int(port)


def allowed_source(text: str) -> str:
    """Return an entry of `--adapter-sources` in canonical spelling. Raises ValueError."""
    text = text.strip()
    scheme, colon, rest = text.partition("://")
    if colon:
        scheme, rest = scheme.lower(), rest.removesuffix("/")
        if scheme not in ("s3", "gs") or not _BUCKET.fullmatch(rest):
            raise ValueError(text)
        return f"{scheme}://{rest}"
    if "/" in text:
        return str(ip_network(text, strict=False))
    host, port = split_port(text)
    if address_of(host) is None and not _NAME.fullmatch(host):
        raise ValueError(text)
    shown = f"[{host}]" if ":" in host else host
    return host if port is None else f"{shown}:{port}"


def store_url(text: str) -> str:
    """Return the URL of an object store without a final slash. Raises ValueError, also if there
    are credentials or options in it."""
    url = text.strip().rstrip("/")
    scheme = url.partition("://")[0].lower()
    if not _STORE.fullmatch(url) or scheme in ("http", "https"):
        raise ValueError(text)
    return url


def allowed_resolver(text: str) -> str:
    """Return an entry of `--adapter-resolvers` in canonical spelling. Raises ValueError."""
    text = text.strip().rstrip("/")
    if text == HUB or _ORG.fullmatch(text) or _PLACE.fullmatch(text):
        return text
    raise ValueError(text)


def allowed_origin(text: str) -> str:
    """Return `https://app.example.com`, `app://obsidian.md`, `null`, or `*` as browsers write it.
    Raises ValueError, also if there is a path."""
    origin = text.strip().lower().removesuffix("/")
    if origin in (ANY, "null"):
        return origin
    if origin.endswith(":/"):
        # There is nothing more to it: file://
        origin += "/"
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(text)
    return origin.removesuffix(_OWN_PORTS.get(origin.partition(":")[0], " "))


def url_prefix(text: str) -> str:
    """Return the first part of a URL's path, `/llm`, without a final slash; empty for `/`. Raises
    ValueError."""
    prefix = text.strip().removesuffix("/")
    if not _PREFIX.fullmatch(prefix) or {".", ".."} & set(prefix.split("/")):
        raise ValueError(text)
    return prefix
