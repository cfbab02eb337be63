"""What a `source` names: a folder on the server, an https URL, a hub id, or an object in a store.

/srv/adapters/legal, file:///srv/adapters/legal
https://host/legal.zip                  a zip, tar or tar.gz, by the end of the path
https://host/legal                      a folder: its files are fetched one by one
org/name, org/name@revision, org/name@revision/folder, hf://…
s3://bucket/legal, s3://bucket/legal.zip, gs://…
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from lorry.errors import InvalidRequest, UnsupportedParameter
from lorry.fetch.allowed import HTTPS
from lorry.hostname import is_host

LONGEST = 4096
"""Characters."""

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")

_URL = re.compile(r"[!-~]+")
"""Visible ASCII."""

_NEVER = frozenset('\\<>"^`{|}')
"""Characters that no URL has, and that programs read differently."""

_HUB = re.compile(
    r"(?P<repo>[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})"
    r"(@(?P<revision>[\w.%-]{1,200}))?"
    r"(?P<folder>(/[\w.-]{1,200}){0,20})",
    re.ASCII,
)
_BUCKET = re.compile(r"(?P<bucket>[a-z0-9][a-z0-9._-]{1,221})/(?P<key>[^\0-\x1f\\?#*\[\]]+)")

_PARAM = "source"


@dataclass(frozen=True, slots=True)
class HttpsAddress:
    """The parts of an https URL."""

    host: str
    """A name, or an IP address without brackets."""
    port: int
    path: str
    query: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == HTTPS else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """The URL without its query, which may have a signature in it."""
        return f"https://{self.authority}{self.path}"

    @property
    def url(self) -> str:
        return self.shown + (f"?{self.query}" if self.query else "")


@dataclass(frozen=True, slots=True)
class HttpsSource:
    address: HttpsAddress
    is_archive: bool
    is_hub: bool = False

    @property
    def shown(self) -> str:
        return self.address.shown

    def file(self, name: str) -> HttpsAddress:
        """Return the address of a file in the folder."""
        at = self.address
        return HttpsAddress(at.host, at.port, f"{at.path.rstrip('/')}/{quote(name)}", at.query)


@dataclass(frozen=True, slots=True)
class BucketSource:
    scheme: str
    path: str
    """`bucket/key`."""
    is_archive: bool

    @property
    def shown(self) -> str:
        return f"{self.scheme}://{self.path}"


Source = Path | HttpsSource | BucketSource


def source_of(text: str, hub_endpoint: str) -> Source:
    """Read a `source`. Raises InvalidRequest, UnsupportedParameter."""
    if len(text) > LONGEST or "\0" in text:
        raise InvalidRequest("source is not a path, URL or hub id", param=_PARAM)
    scheme, colon, rest = text.partition("://")
    if not colon:
        return Path(text) if text.startswith("/") else _hub(text, hub_endpoint)
    match scheme.lower():
        case "file":
            if not rest.startswith("/"):
                raise InvalidRequest("source: file:// needs an absolute path", param=_PARAM)
            return Path(rest)
        case "https":
            address = address_of_url(text)
            return HttpsSource(address, is_archive=_is_archive(address.path))
        case "hf":
            return _hub(rest, hub_endpoint)
        case "s3" | "gs" as store:
            return _bucket(store, rest)
        case "http":
            raise UnsupportedParameter(
                "source: http:// is not served, because anybody on the way could change the "
                "files; use https://",
                param=_PARAM,
            )
        case other:
            raise UnsupportedParameter(
                f"source: {other[:20]}:// is not served; use https://, s3://, gs://, a hub id, or "
                "the absolute path of a folder on the server",
                param=_PARAM,
            )


def address_of_url(url: str) -> HttpsAddress:
    """Read an https URL. Raises InvalidRequest."""
    if len(url) > LONGEST or not _URL.fullmatch(url) or _NEVER & set(url):
        raise InvalidRequest("source is not a valid URL", param=_PARAM)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidRequest("source is not a valid URL", param=_PARAM) from None
    if parts.scheme != "https":
        raise InvalidRequest("source is not an https:// URL", param=_PARAM)
    if "@" in parts.netloc:
        raise InvalidRequest(
            "source has credentials in its URL, which would end up in logs; leave them out",
            param=_PARAM,
        )
    if "#" in url:
        raise InvalidRequest("source has a # in its URL, which no server sees", param=_PARAM)
    if not is_host(host) or port == 0:
        raise InvalidRequest(f"source: {host[:80]!r} is not a host", param=_PARAM)
    return HttpsAddress(host, HTTPS if port is None else port, parts.path or "/", parts.query)


def _hub(text: str, endpoint: str) -> HttpsSource:
    found = _HUB.fullmatch(text)
    if found is None or {".", ".."} & set(text.split("/")):
        raise UnsupportedParameter(
            f"source: {text[:80]!r} is neither an absolute path on the server, nor a URL, nor a "
            "hub id such as org/name, org/name@revision or org/name@revision/folder",
            param=_PARAM,
        )
    try:
        base = address_of_url(endpoint)
    except InvalidRequest:
        raise UnsupportedParameter(
            "source: this server's hub has no https:// URL (--hub-endpoint, HF_ENDPOINT), so hub "
            "ids are not served",
            param=_PARAM,
        ) from None
    revision = quote(unquote(found["revision"] or "main"), safe="")
    path = f"{base.path.rstrip('/')}/{found['repo']}/resolve/{revision}{found['folder']}"
    address = HttpsAddress(base.host, base.port, path, "")
    return HttpsSource(address, is_archive=_is_archive(path), is_hub=True)


def _bucket(scheme: str, rest: str) -> BucketSource:
    path = rest.rstrip("/")
    found = _BUCKET.fullmatch(path)
    if found is None or {"", ".", ".."} & set(path.split("/")):
        raise InvalidRequest(
            f"source: {scheme}:// needs a bucket and a path, such as {scheme}://bucket/adapters/a",
            param=_PARAM,
        )
    return BucketSource(scheme, path, is_archive=_is_archive(path))


def _is_archive(path: str) -> bool:
    return path.lower().endswith(ARCHIVES)
