"""Attacks on a real server: each is refused in words, and a good adapter then answers as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from support.attack import KEY
from support.attacks import attacks
from support.https_server import HttpsServer, serve_https
from support.patience import wait_until
from support.server import body, running

MAX_RANK = 8
LEAST = 150
KEPT = 100 << 20
"""Bytes. One answer to each of the attacks brings in code that was not needed before."""

FLAGS = ("--served-model-name", "base", "--max-lora-rank", str(MAX_RANK), "--max-upload", "4MiB")


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[tuple[HttpsServer, Path]]:
    """A server that may be fetched from, and the certificate that vouches for it."""
    authority = trustme.CA()
    certificate = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(certificate))
    (tmp_path / "root").mkdir()
    with serve_https(tmp_path / "root", authority) as server:
        yield server, certificate


def test_each_is_refused_in_words(
    model: Path,
    tmp_path: Path,
    archive: Callable[..., Path],
    peft_adapter: Callable[..., Path],
    origin: tuple[HttpsServer, Path],
) -> None:
    web, certificate = origin
    rows = attacks(peft_adapter("llama", "plain", seed=2), web, MAX_RANK)
    assert len(rows) >= LEAST
    environment = {"LORRY_API_KEY": KEY, "SSL_CERT_FILE": str(certificate)}
    flags = (*FLAGS, "--adapter-sources", f"{web.host},127.0.0.1")
    with running(model, tmp_path / "home", *flags, env=environment) as server:
        server.client.headers["x-api-key"] = KEY
        server.upload("good", archive("plain", 1)).raise_for_status()
        asked = body("once upon", "good", 4)

        def answer() -> object:
            return server.client.post("/generate", json=asked).raise_for_status().json()

        answer()
        expected = answer(), server.client.get("/adapters").json()
        before = server.resident_bytes()
        wrong = []
        for row in rows:
            status, text = row.send(server.client)
            clear = status == row.status and row.says.lower() in text.lower()
            if not clear or "Traceback" in text or len(text) > 5000:
                wrong.append(
                    f"{row.name}: {status}, not {row.status} with {row.says!r}: {text[:300]}"
                )
            assert (answer(), server.client.get("/adapters").json()) == expected, row.name
        assert not wrong, "\n".join(wrong)
        assert server.client.get("/keys").json() == {"keys": []}
        wait_until(lambda: server.resident_bytes() <= before + KEPT, "memory to be bounded")
        assert len(list((server.home / "blobs").iterdir())) == 1
        assert not list((server.home / "staging").iterdir())
