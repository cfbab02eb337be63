"""What a `source` names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import InvalidRequest, RequestError, UnsupportedParameter
from lorry.fetch.source_text import BucketSource, HttpsSource, source_of

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "url", "archive"),
    [
        ("https://example.com/a", "https://example.com/a", False),
        ("HTTPS://example.com:443/a/", "https://example.com/a/", False),
        ("https://example.com:8443/a.zip", "https://example.com:8443/a.zip", True),
        ("https://example.com/a.tar.gz?sig=x/y", "https://example.com/a.tar.gz?sig=x/y", True),
        ("https://[::1]/a", "https://[::1]/a", False),
        ("org/name", f"{HUB}/org/name/resolve/main", False),
        ("hf://org/name", f"{HUB}/org/name/resolve/main", False),
        ("org/name@v1.0", f"{HUB}/org/name/resolve/v1.0", False),
        ("org/name@refs%2Fpr%2F1/sub/x", f"{HUB}/org/name/resolve/refs%2Fpr%2F1/sub/x", False),
        ("org/name/sub/x.zip", f"{HUB}/org/name/resolve/main/sub/x.zip", True),
    ],
)
def test_what_is_fetched_by_https(text: str, url: str, archive: bool) -> None:
    source = source_of(text, HUB)
    assert isinstance(source, HttpsSource)
    assert (source.address.url, source.is_archive) == (url, archive)
    assert source.is_hub is (not text.lower().startswith("https"))


def test_a_query_is_not_shown_and_goes_with_each_file() -> None:
    source = source_of("https://example.com/a?sig=secret", HUB)
    assert isinstance(source, HttpsSource)
    assert source.shown == "https://example.com/a"
    assert source.file("x.json").url == "https://example.com/a/x.json?sig=secret"


def test_folders_and_buckets() -> None:
    assert source_of("/srv/a", HUB) == source_of("file:///srv/a", HUB) == Path("/srv/a")
    assert source_of("s3://bucket/team/a/", HUB) == BucketSource("s3", "bucket/team/a", False)
    assert source_of("gs://bucket/a.zip", HUB) == BucketSource("gs", "bucket/a.zip", True)


@pytest.mark.parametrize(
    "text",
    [
        *("http://example.com/a", "ftp://example.com/a", "git+ssh://x/y", "javascript://x/y"),
        *("relative", "./a", "../a", "a/../b", "org/name@", "org/name@a b", "", "org//name"),
    ],
)
def test_other_kinds_are_not_served(text: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        source_of(text, HUB)
    assert caught.value.param == "source"


@pytest.mark.parametrize("endpoint", ["http://mirror", "mirror", "https://user:secret@mirror"])
def test_a_hub_needs_https(endpoint: str) -> None:
    with pytest.raises(UnsupportedParameter, match="--hub-endpoint") as caught:
        source_of("org/name", endpoint)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        *("https://user:secret@example.com/a", "https://user@example.com/a", "https://@x/a"),
        *("https://", "https:///a", "https://exa mple.com/a", "https://example.com:0/a"),
        *("https://example.com:99999/a", "https://example.com/a#b", "https://example.com\\@x/a"),
        *("https://[::1/a", "https://*.example.com/a", "https://exämple.com/a", "https://[fe80::1%25e]/a"),
        *("https://x/a\r\nHost: y", "s3://bucket", "s3://bucket/../a", "s3://b/a?b", "file://a"),
        *("https://x/" + "a" * 5000, "/a\0b"),
    ],
)  # fmt: skip
def test_malformed_ones_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        source_of(text, HUB)
    assert caught.value.param == "source" and "secret" not in caught.value.message


@given(st.one_of(st.text(max_size=60), st.text(max_size=60).map("https://".__add__)))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        source = source_of(text, HUB)
    except RequestError:
        return
    if isinstance(source, HttpsSource):
        assert source.address.host and "@" not in source.address.authority
        assert source_of(source.address.url, HUB) == HttpsSource(source.address, source.is_archive)
