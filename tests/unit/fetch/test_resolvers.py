"""The place of a name, by each kind of resolver."""

from __future__ import annotations

import pytest

from lorry.errors import SettingsError
from lorry.fetch.resolvers import check_resolvers, source_for
from lorry.hostname import allowed_resolver


@pytest.mark.parametrize(
    ("resolver", "name", "source"),
    [
        ("hub", "org/name", "org/name"),
        ("hub", "name", None),
        ("hub", "a/b/c", None),
        ("hub", "base:name", None),
        ("hub:org", "name", "org/name"),
        ("hub:org", "org/name", "org/name"),
        ("hub:org", "other/name", None),
        ("hub:org", "org/name/more", None),
        ("s3://bucket/prefix", "name", "s3://bucket/prefix/name"),
        ("s3://bucket/prefix", "org/name", "s3://bucket/prefix/org/name"),
        ("s3://bucket/prefix", "base:name", None),
        ("https://host/a", "name", "https://host/a/name"),
    ],
)
def test_where_a_name_is_looked_for(resolver: str, name: str, source: str | None) -> None:
    assert source_for(resolver, name) == source


@pytest.mark.parametrize(
    "text", ["", "hub:", "hub:a/b", "hubs", "http://host/a", "/srv", "s3://", "s3://a b", "x?y"]
)
def test_what_is_no_resolver(text: str) -> None:
    with pytest.raises(ValueError):
        allowed_resolver(text)


def test_a_place_that_is_not_allowed_is_refused_at_start() -> None:
    hub = "https://hub.example.com"
    check_resolvers(["hub", "hub:org"], ["hub.example.com"], hub)
    check_resolvers(["s3://bucket/a/b"], ["s3://bucket/a"], hub)
    for resolver in ("hub", "hub:org", "s3://bucket/b", "https://other.example.com/a"):
        with pytest.raises(SettingsError, match=f"--adapter-resolvers {resolver}: .*not allowed"):
            check_resolvers([resolver], ["s3://bucket/a"], hub)
    with pytest.raises(SettingsError, match="no https:// URL"):
        check_resolvers(["hub"], ["hub.example.com"], "http://hub.example.com")
