"""A fetch is its owners' matter: a key whose list has not the name learns nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import trustme

from api.fetching import fetch
from api.live import Live, refused, serve
from lorry.settings import Settings
from support.https_server import HttpsServer, Slow
from support.patience import client, wait_until


@pytest.fixture
def keyed(
    tmp_path: Path,
    settings_for: Callable[..., Settings],
    authority: trustme.CA,
    origin: HttpsServer,
) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch, authority.cert_pem.tempfile() as trusted:
        patch.setenv("SSL_CERT_FILE", trusted)
        sources = (origin.host, "127.0.0.1")
        settings = settings_for(tmp_path / "home", api_key="s3cret", adapter_sources=sources)
        with serve(settings) as one:
            yield one


@pytest.fixture
def tax(keyed: Live) -> Iterator[httpx.Client]:
    """A client with a key for `tax-*` alone."""
    body = {"name": "tax", "scopes": ["upload"], "adapters": ["tax-*"]}
    with client(keyed.url) as one:
        one.headers["x-api-key"] = keyed.http.post("/keys", json=body).json()["key"]
        yield one


def test_a_foreign_fetch_is_neither_seen_nor_cancelled(
    keyed: Live, tax: httpx.Client, origin: HttpsServer
) -> None:
    unknown = {
        name: refused(getattr(tax, name)("/adapters/nobody"), 404, "unknown_adapter")["message"]
        for name in ("get", "delete")
    }
    slow = origin.answers["/slow.zip"] = Slow((origin.root / "legal.zip").read_bytes())
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(fetch, keyed, f"{origin.url}/slow.zip")
        try:
            wait_until(lambda: keyed.http.get("/adapters/legal").status_code == 202)
            for name, message in unknown.items():
                error = refused(getattr(tax, name)("/adapters/legal"), 404, "unknown_adapter")
                assert error["message"] == message.replace("nobody", "legal")
            for path in ("slow.zip", "legal.zip"):
                body = {"name": "legal", "source": f"{origin.url}/{path}"}
                refused(tax.post("/adapters", json=body), 403, "forbidden_adapter")
        finally:
            slow.go_on.set()
        assert answer.result().status_code == 201
    mine = {"name": "tax-a", "source": f"{origin.url}/legal.zip"}
    assert tax.post("/adapters", json=mine).status_code == 201
    assert [one["name"] for one in tax.get("/adapters").json()["adapters"]] == ["tax-a"]
    origin.answers.clear()


def test_nor_is_its_failure(keyed: Live, tax: httpx.Client, origin: HttpsServer) -> None:
    refused(fetch(keyed, f"{origin.url}/none.zip"), 502, "source_failed")
    assert "none.zip" in keyed.http.get("/adapters/legal").text
    assert "none.zip" not in tax.get("/adapters/legal").text
