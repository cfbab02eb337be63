"""The places from which adapters may be fetched."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lorry.fetch.allowed import Allowed, is_public
from lorry.hostname import allowed_source
from lorry_adapters.errors import ForbiddenSource


def allowed(*entries: str) -> Allowed:
    return Allowed.of(map(allowed_source, entries))


@pytest.mark.parametrize(
    ("entry", "host", "port", "good"),
    [
        ("files.example.com", "files.example.com", 443, True),
        ("files.example.com", "FILES.example.com.", 443, True),
        ("files.example.com", "files.example.com", 8443, False),
        ("files.example.com:8443", "files.example.com", 8443, True),
        ("files.example.com:8443", "files.example.com", 443, False),
        ("files.example.com", "evil-files.example.com", 443, False),
        ("files.example.com", "a.files.example.com", 443, False),
        ("*.example.com", "files.example.com", 443, True),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "evilexample.com", 443, False),
        ("*.example.com", "example.com.evil.org", 443, False),
        ("10.0.0.1", "10.0.0.1", 443, True),
        ("10.0.0.1", "10.0.0.1", 80, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("[::1]:8443", "::1", 8443, True),
        ("127.0.0.1", "localhost", 443, False),
        ("s3://bucket", "bucket", 443, False),
    ],
)
def test_a_host_is_allowed_by_name_and_port(entry: str, host: str, port: int, good: bool) -> None:
    if good:
        allowed(entry).check_host(host, port)
        return
    with pytest.raises(ForbiddenSource, match="--adapter-sources"):
        allowed(entry).check_host(host, port)


def test_an_empty_list_allows_nothing() -> None:
    with pytest.raises(ForbiddenSource, match="fetches nothing"):
        allowed().check_host("example.com", 443)
    with pytest.raises(ForbiddenSource, match="fetches nothing"):
        allowed().check_bucket("s3://bucket/key")


PRIVATE = (
    *("127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("0.0.0.0", "100.64.0.1", "192.0.2.1", "224.0.0.1", "255.255.255.255", "240.0.0.1"),
    *("::1", "::", "fe80::1", "fc00::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
)


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_has_to_be_listed_itself(address: str) -> None:
    found = ip_address(address)
    assert not is_public(found)
    with pytest.raises(ForbiddenSource, match="not public"):
        allowed("files.example.com").check_address("files.example.com", found)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))
    allowed("files.example.com").check_address("files.example.com", ip_address(address))


def test_a_listed_address_or_network_is_connected_to() -> None:
    found = ip_address("10.1.2.3")
    for entry in ("10.1.2.3", "10.1.2.3:8443", "10.0.0.0/8"):
        allowed("files.corp", entry).check_address("files.corp", found)
    with pytest.raises(ForbiddenSource):
        allowed("files.corp", "10.1.2.4", "11.0.0.0/8").check_address("files.corp", found)


@pytest.mark.parametrize(
    ("entry", "url", "good"),
    [
        ("s3://bucket", "s3://bucket/a", True),
        ("s3://bucket/team", "s3://bucket/team/a", True),
        ("s3://bucket/team", "s3://bucket/teammate/a", False),
        ("s3://bucket", "s3://bucket-two/a", False),
        ("s3://bucket", "gs://bucket/a", False),
        ("bucket", "s3://bucket/a", False),
    ],
)
def test_a_bucket_is_allowed_by_its_prefix(entry: str, url: str, good: bool) -> None:
    if good:
        allowed(entry).check_bucket(url)
        return
    with pytest.raises(ForbiddenSource):
        allowed(entry).check_bucket(url)


@pytest.mark.parametrize(
    "entry",
    ["*", "", "https://x", "http://x/y", "ftp://x", "a b", "x:0", "x:y", "x:70000", "s3://", "a/b"],
)
def test_entries_that_are_refused(entry: str) -> None:
    with pytest.raises(ValueError):
        allowed_source(entry)
