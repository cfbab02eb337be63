"""Who counts as one caller."""

from __future__ import annotations

import pytest

from lorry.api.visit import caller_of


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("a name of no address", ""),
    ],
)
def test_an_address_or_the_network_of_one_subscriber(address: str, caller: str) -> None:
    assert caller_of({"type": "http", "client": (address, 1)}) == caller


def test_a_socket_without_addresses_has_one_caller() -> None:
    assert caller_of({"type": "http", "client": None}) == caller_of({"type": "http"}) == ""
