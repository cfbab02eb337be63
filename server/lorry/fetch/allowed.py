"""The places from which adapters may be fetched, as `--adapter-sources` lists them.

A host must be listed by its name or address, and by its port unless that is 443. An address that is
not public (loopback, private, link-local, ...) must be listed as well, itself or its network, even
if the host is listed by name: otherwise the host's owner could point it at this machine's network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from lorry.hostname import address_of, name_of, split_port
from lorry_adapters.errors import ForbiddenSource

HTTPS = 443

_NAT64 = ip_network("64:ff9b::/96")
"""IPv6 addresses with an IPv4 address in their last 32 bits (RFC 6052)."""


@dataclass(frozen=True, slots=True)
class Allowed:
    hosts: frozenset[tuple[str, int]]
    domains: tuple[tuple[str, int], ...]
    """`.example.com` and a port: all names below one."""
    networks: tuple[IPv4Network | IPv6Network, ...]
    buckets: tuple[str, ...]
    """`s3://bucket` or `s3://bucket/prefix`."""

    @classmethod
    def of(cls, entries: Iterable[str]) -> Allowed:
        """Read entries that `hostname.allowed_source` returned."""
        hosts, domains, networks, buckets = set(), [], [], []
        for entry in entries:
            if "://" in entry:
                buckets.append(entry)
            elif "/" in entry:
                networks.append(ip_network(entry))
            else:
                host, port = split_port(entry)
                if host.startswith("*."):
                    domains.append((host[1:], port or HTTPS))
                    continue
                hosts.add((host, port or HTTPS))
                address = address_of(host)
                if address is not None:
                    networks.append(ip_network(address))
        return cls(frozenset(hosts), tuple(domains), tuple(networks), tuple(buckets))

    def check_host(self, host: str, port: int) -> None:
        """Raises ForbiddenSource."""
        host = name_of(host)
        address = address_of(host)
        if (host, port) in self.hosts or (
            address is not None
            and port == HTTPS
            and any(address in network for network in self.networks)
        ):
            return
        if address is None and any(
            host.endswith(domain) and port == allowed for domain, allowed in self.domains
        ):
            return
        shown = host if port == HTTPS else f"{host}:{port}"
        raise _forbidden(shown, self)

    def check_address(self, host: str, address: IPv4Address | IPv6Address) -> None:
        """Check the address to which `host` is about to be connected. Raises ForbiddenSource."""
        if is_public(address) or any(address in network for network in self.networks):
            return
        raise ForbiddenSource(
            f"{host} has the address {address}, which is not public; --adapter-sources must list "
            "the address as well"
        )

    def check_bucket(self, url: str) -> None:
        """Raises ForbiddenSource unless a bucket and prefix of the list contain `url`."""
        if not any(url == bucket or url.startswith(f"{bucket}/") for bucket in self.buckets):
            raise _forbidden(url, self)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """True if the address is on the public internet, including any IPv4 address within it."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


def _forbidden(what: str, allowed: Allowed) -> ForbiddenSource:
    if allowed == Allowed.of(()):
        return ForbiddenSource(
            f"{what} is not allowed as a source: this server fetches nothing; "
            "--adapter-sources lists the places from which it may"
        )
    return ForbiddenSource(f"{what} is not allowed as a source; --adapter-sources lists those")
