"""A server that may fetch, and the servers that it may fetch from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from api.live import Live, serve
from lorry.settings import Settings
from support.https_server import HttpsServer, serve_https
from support.patience import wait_until

PROMPT = "The lorry waited"
MAX_UPLOAD = 1 << 20


@pytest.fixture(scope="package")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="package")
def origin(
    tmp_path_factory: pytest.TempPathFactory,
    authority: trustme.CA,
    archives: Callable[[int], Path],
    peft_adapter: Callable[..., Path],
) -> Iterator[HttpsServer]:
    root = tmp_path_factory.mktemp("origin")
    (root / "legal.zip").write_bytes(archives(1).read_bytes())
    (root / "legal").mkdir()
    for file in peft_adapter("llama", "plain", seed=1).iterdir():
        (root / "legal" / file.name).write_bytes(file.read_bytes())
    with serve_https(root, authority) as server:
        yield server


@pytest.fixture(scope="package")
def cdn(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, origin: HttpsServer
) -> Iterator[HttpsServer]:
    """The same files on another server."""
    with serve_https(origin.root, authority) as server:
        yield server


@pytest.fixture(scope="package")
def fetching(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    authority: trustme.CA,
    origin: HttpsServer,
    cdn: HttpsServer,
    archives: Callable[[int], Path],
) -> Iterator[Live]:
    """A server that may fetch from `origin` and `cdn` alone. `pirate` is there for comparison."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, authority.cert_pem.tempfile() as trusted:
        patch.setenv("SSL_CERT_FILE", trusted)
        settings = settings_for(
            home,
            adapter_sources=(origin.host, cdn.host, "127.0.0.1"),
            hub_endpoint=origin.url,
            hf_token="hub-secret",
            max_upload=MAX_UPLOAD,
        )
        with serve(settings) as one:
            assert one.upload("pirate", archives(2)).status_code == 201
            yield one


@pytest.fixture
def good(fetching: Live, origin: HttpsServer) -> Iterator[Live]:
    """Whatever is tried, a good adapter answers the same afterwards, and nothing is left."""
    before = answer_of(fetching)
    origin.requests.clear()
    yield fetching
    origin.answers.clear()
    for record in fetching.http.get("/adapters").json()["adapters"]:
        if record["name"] != "pirate":
            assert fetching.http.delete(f"/adapters/{record['name']}").status_code == 204
    assert answer_of(fetching) == before
    wait_until(lambda: not staged(fetching), "staging to be empty")


def answer_of(live: Live) -> tuple[Any, Any]:
    """The text and the adapter; logprobs differ by rounding if the prompt is cached."""
    answer = live.generate(PROMPT, adapter="pirate")
    return answer["generated_text"], answer["adapters"]


def staged(live: Live) -> list[Path]:
    return [*(live.server.settings.home / "staging").rglob("*")]


def fetch(live: Live, source: str, name: str = "legal", **more: Any) -> httpx.Response:
    return live.http.post("/adapters", json={"name": name, "source": source, **more})
