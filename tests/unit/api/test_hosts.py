"""What `Host` may say, for every way to listen."""

from __future__ import annotations

import socket

import pytest

from lorry.api.errors import ForeignHost, MalformedHost, message_of, row_of
from lorry.api.hosts import Hosts
from lorry.hostname import allowed_host

LOOPBACK = ("127.0.0.1", "::1", "localhost")
EVERYWHERE = ("0.0.0.0", "::", "10.1.2.3", "lorry.internal.example")

OWN = (
    "localhost",
    "localhost:8000",
    "LocalHost",
    "localhost.",
    "localhost.:8000",
    "lorry.localhost:9000",
    "127.0.0.1:8000",
    "127.9.9.9",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "host.docker.internal:8000",
    socket.gethostname(),
    f"{socket.gethostname().upper()}:8000",
)

FOREIGN = (
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "evil-localhost",
    "127.0.0.1.evil.example",
    "evil.example.",
    "xn--lcalhost-i4a",
    "127.1",
    "0x7f000001",
    "lorry",
)

ADDRESSES = ("10.1.2.3:8000", "192.168.0.7", "[fe80::1]:8000", "[2001:db8::7]")


def of(bound: str, *allowed: str) -> Hosts:
    return Hosts([allowed_host(name) for name in allowed], bound=bound)


@pytest.mark.parametrize("bound", [*LOOPBACK, *EVERYWHERE])
@pytest.mark.parametrize("host", OWN)
def test_names_and_addresses_of_the_machine(bound: str, host: str) -> None:
    assert of(bound).refusal([host]) is None


@pytest.mark.parametrize("bound", [*LOOPBACK, *EVERYWHERE])
@pytest.mark.parametrize("host", FOREIGN)
def test_names_that_can_lead_anywhere(bound: str, host: str) -> None:
    error = of(bound).refusal([host])
    assert isinstance(error, ForeignHost)
    assert row_of(error).status == 403
    name = host.partition(":")[0]
    assert repr(name) in message_of(error)
    assert message_of(error).endswith(f"--allowed-hosts {name.removesuffix('.')}")


@pytest.mark.parametrize("host", ADDRESSES)
def test_addresses_where_others_can_reach_it(host: str) -> None:
    for bound in EVERYWHERE:
        assert of(bound).refusal([host]) is None
    for bound in LOOPBACK:
        assert isinstance(of(bound).refusal([host]), ForeignHost)


def test_the_name_it_listens_on() -> None:
    assert of("lorry.internal.example").refusal(["Lorry.Internal.Example.:80"]) is None


def test_names_that_the_operator_gives() -> None:
    hosts = of("127.0.0.1", "LLM.example.com", "*.gpu.example", "10.0.0.9", "[2001:DB8::1]")
    for host in ("llm.example.com:443", "a.gpu.example", "b.a.GPU.example.", "10.0.0.9"):
        assert hosts.refusal([host]) is None, host
    assert hosts.refusal(["[2001:db8:0::1]:80"]) is None
    for host in ("example.com", "x.llm.example.com", "gpu.example", "evilgpu.example"):
        assert isinstance(hosts.refusal([host]), ForeignHost), host


def test_any_host_where_the_operator_says_so() -> None:
    hosts = of("0.0.0.0", "*")
    for given in (["evil.example"], ["a", "b"], ["@"], []):
        assert hosts.refusal(given) is None


@pytest.mark.parametrize("given", [[], [""], ["  "]])
def test_a_probe_without_a_host(given: list[str]) -> None:
    assert of("127.0.0.1").refusal(given) is None


@pytest.mark.parametrize(
    "host", ["a@localhost", "localhost/", "localhost:80:80", "local host", "[::1", "::1", "a,b:x"]
)
def test_what_is_no_host(host: str) -> None:
    error = of("127.0.0.1").refusal([host])
    assert isinstance(error, MalformedHost)
    assert row_of(error).status == 400


def test_of_two_hosts_neither_is_believed() -> None:
    for given in (["localhost", "evil.example"], ["localhost", "localhost"]):
        assert isinstance(of("127.0.0.1").refusal(given), MalformedHost)


def test_a_made_up_name_is_no_command() -> None:
    error = of("127.0.0.1").refusal(["x;rm$(ls)"])
    assert error is not None
    assert message_of(error).endswith("--allowed-hosts NAME")
