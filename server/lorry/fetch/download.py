"""Downloads files over https, from allowed hosts only.

A name is resolved once, its addresses are checked, and the connection goes to a checked address:
the answer of a second look-up cannot redirect it. Each redirect is checked like the first URL.
Environment variables that name proxies are ignored, since a proxy would resolve names itself.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from ssl import SSLContext
from urllib.parse import urljoin

import httpx

import lorry
from lorry.errors import InvalidRequest, SourceFailed
from lorry.fetch.allowed import Allowed
from lorry.fetch.source_text import HttpsAddress, address_of_url
from lorry_adapters.errors import ForbiddenSource, UploadTooLarge

MAX_REDIRECTS = 5

CHUNK = 1 << 20
"""Bytes collected before a thread writes them."""

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
"""Seconds to connect, and between two parts of an answer."""

_UNREACHABLE = (httpx.ConnectError, httpx.ConnectTimeout)
"""The next address may be tried."""

_ABSENT = (403, 404, 410)
"""Statuses for a file that is not there. Object stores answer 403 to callers that may not list."""


async def resolve(host: str, port: int) -> list[str]:
    """Look the name up. Raises OSError, UnicodeError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class AnswerRefused(SourceFailed):
    """The answer has another status than 200."""

    def __init__(self, shown: str, status: int) -> None:
        super().__init__(f"{shown} answered {status}")
        self.status = status


@dataclass(slots=True)
class Progress:
    """Bytes that have arrived, and those that are announced so far; None if one answer had none."""

    bytes: int = 0
    total: int | None = 0

    def announce(self, length: int | None) -> None:
        self.total = None if length is None or self.total is None else self.total + length


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to download."""

    address: HttpsAddress
    to: Path
    limit: int
    """Bytes. A longer file raises UploadTooLarge."""
    cut: bool = False
    """A longer file is cut there instead."""
    optional: bool = False
    """Its absence is no error."""
    token: str | None = None
    """Bearer token. Sent only to the first URL's own host and port."""


class Downloader:
    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._context: SSLContext | None = None

    async def download(self, wanted: Wanted, progress: Progress) -> bool:
        """Write the file. Return False if an optional one is absent.

        Raises ForbiddenSource, SourceFailed, UploadTooLarge, and OSError from writing.
        """
        address = wanted.address
        for _ in range(MAX_REDIRECTS + 1):
            own = address.authority == wanted.address.authority
            async with self._answer(address, wanted.token if own else None) as response:
                if response.has_redirect_location:
                    address = self._next(address, response)
                    continue
                if response.status_code in _ABSENT and wanted.optional:
                    return False
                if response.status_code != 200:
                    raise AnswerRefused(address.shown, response.status_code)
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    raise SourceFailed(f"{address.shown} sent a compressed answer, unasked")
                await self._write(response, address, wanted, progress)
                return True
        raise SourceFailed(f"{wanted.address.shown} redirects more than {MAX_REDIRECTS} times")

    def _next(self, address: HttpsAddress, response: httpx.Response) -> HttpsAddress:
        try:
            return address_of_url(urljoin(address.url, response.headers["location"]))
        except (InvalidRequest, ValueError):
            raise ForbiddenSource(
                f"{address.shown} redirects to something other than an https:// URL"
            ) from None

    async def _write(
        self, response: httpx.Response, address: HttpsAddress, wanted: Wanted, progress: Progress
    ) -> None:
        too_large = UploadTooLarge(
            f"{address.shown} is larger than the limit of {wanted.limit} bytes", param="source"
        )
        announced = response.headers.get("content-length", "")
        length = int(announced) if announced.isdecimal() else None
        if length is not None and length > wanted.limit:
            if not wanted.cut:
                raise too_large
            length = wanted.limit
        progress.announce(length)
        size, waiting = 0, bytearray()
        with wanted.to.open("xb") as out:
            # Without a size: httpx would keep what arrives until there is as much.
            async for chunk in response.aiter_raw():
                if size + len(chunk) > wanted.limit:
                    if not wanted.cut:
                        raise too_large
                    chunk = chunk[: wanted.limit - size]
                size += len(chunk)
                progress.bytes += len(chunk)
                waiting += chunk
                if len(waiting) >= CHUNK:
                    await asyncio.to_thread(out.write, bytes(waiting))
                    waiting.clear()
                if size == wanted.limit and wanted.cut:
                    break
            await asyncio.to_thread(out.write, bytes(waiting))

    @asynccontextmanager
    async def _answer(
        self, address: HttpsAddress, token: str | None
    ) -> AsyncGenerator[httpx.Response]:
        """Yield the answer of the host, with its body still to come."""
        self._allowed.check_host(address.host, address.port)
        reason = ""
        for ip in await self._addresses(address):
            try:
                async with self._connected(address, ip, token) as response:
                    yield response
                return
            except _UNREACHABLE as error:
                reason = str(error) or type(error).__name__
        raise SourceFailed(f"{address.authority} cannot be reached: {reason}")

    @asynccontextmanager
    async def _connected(
        self, address: HttpsAddress, ip: IPv4Address | IPv6Address, token: str | None
    ) -> AsyncGenerator[httpx.Response]:
        if self._context is None:
            self._context = await asyncio.to_thread(httpx.create_ssl_context)
        headers = {
            "Host": address.authority,
            "User-Agent": f"lorry/{lorry.__version__}",
            "Accept-Encoding": "identity",
            # A kept connection is known by its IP address, and might be another host's.
            "Connection": "close",
        }
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        url = httpx.URL(address.url).copy_with(host=str(ip))
        client = httpx.AsyncClient(verify=self._context, trust_env=False, timeout=_TIMEOUT)
        try:
            async with (
                client,
                client.stream(
                    "GET",
                    url,
                    headers=headers,
                    follow_redirects=False,
                    extensions={"sni_hostname": address.host},
                ) as response,
            ):
                yield response
        except _UNREACHABLE:
            raise
        except httpx.TimeoutException:
            raise SourceFailed(f"{address.authority} does not answer in time") from None
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise SourceFailed(f"{address.shown} cannot be read: {said}") from error

    async def _addresses(self, address: HttpsAddress) -> list[IPv4Address | IPv6Address]:
        """Return the addresses of the host that may be connected to. Raises ForbiddenSource,
        SourceFailed."""
        try:
            found = [ip_address(one) for one in await resolve(address.host, address.port)]
        except (OSError, UnicodeError, ValueError):
            found = []
        if not found:
            raise SourceFailed(f"{address.host} has no address")
        refused: ForbiddenSource | None = None
        good = []
        for one in found:
            try:
                self._allowed.check_address(address.host, one)
                good.append(one)
            except ForbiddenSource as error:
                refused = error
        if refused is not None and not good:
            raise refused
        return good
