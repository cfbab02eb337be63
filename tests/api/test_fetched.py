"""Adapters that the server fetches over https and from the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from api.fetching import PROMPT, fetch, staged
from api.live import Live, refused, serve
from lorry.settings import Settings
from support.https_server import HttpsServer, Slow, redirect
from support.patience import wait_until


@pytest.mark.parametrize("path", ["legal.zip", "legal", "legal/"])
def test_it_is_the_adapter_that_an_upload_makes(
    good: Live, origin: HttpsServer, archives: Callable[[int], Path], path: str
) -> None:
    answer = fetch(good, f"{origin.url}/{path}", scale=0.5, description="fetched")
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["scale"], made["description"], made["fetch"]) == (0.5, "fetched", None)
    uploaded = good.upload("same", archives(1)).json()
    assert made["digest"] == uploaded["digest"]
    assert fetch(good, f"{origin.url}/{path}").status_code == 200
    refused(fetch(good, f"{origin.url}/{path}", name="pirate"), 409, "adapter_conflict")
    assert good.generate(PROMPT, adapter="legal")["adapters"][0]["digest"] == made["digest"]


def test_a_new_version(good: Live, origin: HttpsServer, archives: Callable[[int], Path]) -> None:
    assert good.upload("legal", archives(2)).json()["version"] == 1
    answer = fetch(good, f"{origin.url}/legal.zip", replace=True)
    assert (answer.status_code, answer.json()["version"]) == (201, 2)


def test_the_hub(good: Live, origin: HttpsServer, cdn: HttpsServer) -> None:
    """Its files are behind a redirect, and the token goes to nobody else."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        path = f"/org/legal/resolve/v1/sub/{name}"
        origin.answers[path] = redirect(f"{cdn.url}/legal/{name}?signature=x")
    answer = fetch(good, "org/legal@v1/sub")
    assert answer.status_code == 201, answer.text
    assert {headers.get("authorization") for _, headers in origin.requests} == {"Bearer hub-secret"}
    assert [(path, headers.get("authorization")) for path, headers in cdn.requests] == [
        ("/legal/adapter_config.json?signature=x", None),
        ("/legal/adapter_model.safetensors?signature=x", None),
    ]
    refused(fetch(good, "org/nobody"), 415, "unsupported_upload")
    origin.requests.clear()
    origin.answers["/org/away/resolve/main/adapter_config.json"] = redirect(
        f"https://127.0.0.1:{cdn.port}/x"
    )
    refused(fetch(good, "org/away"), 403, "forbidden_source")
    assert [path for path, _ in origin.requests] == ["/org/away/resolve/main/adapter_config.json"]


def test_a_url_of_ones_own_gets_no_token(good: Live, origin: HttpsServer) -> None:
    assert fetch(good, f"{origin.url}/legal.zip").status_code == 201
    assert all("authorization" not in headers for _, headers in origin.requests)


# ---- while it is fetched


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as one:
        yield one


@pytest.fixture
def slow(origin: HttpsServer, pool: ThreadPoolExecutor) -> Iterator[Slow]:
    answer = origin.answers["/slow.zip"] = Slow((origin.root / "legal.zip").read_bytes())
    yield answer
    answer.go_on.set()


def test_its_progress_is_shown(
    good: Live, origin: HttpsServer, slow: Slow, pool: ThreadPoolExecutor
) -> None:
    size = (origin.root / "legal.zip").stat().st_size
    answer = pool.submit(fetch, good, f"{origin.url}/slow.zip?signature=secret")
    wait_until(lambda: shown(good)["fetch"]["bytes"] == size // 2)
    assert good.http.get("/adapters/legal").status_code == 202
    assert shown(good) == {
        "name": "legal",
        "fetch": {
            "state": "fetching",
            "source": f"{origin.url}/slow.zip",
            "bytes": size // 2,
            "total": size,
        },
    }
    error = refused(fetch(good, f"{origin.url}/legal.zip"), 409, "adapter_conflict")
    assert "being fetched" in error["message"]
    body = {"inputs": PROMPT, "adapter": "legal"}
    assert good.http.post("/generate", json=body).status_code == 404
    slow.go_on.set()
    assert answer.result().status_code == 201
    assert shown(good)["fetch"] is None


def shown(live: Live) -> dict[str, Any]:
    found: dict[str, Any] = live.http.get("/adapters/legal").json()
    return found if "fetch" in found else {"fetch": {"bytes": -1}}


def test_the_version_in_force_stays_meanwhile(
    good: Live,
    origin: HttpsServer,
    slow: Slow,
    pool: ThreadPoolExecutor,
    archives: Callable[[int], Path],
) -> None:
    good.upload("legal", archives(2))
    answer = pool.submit(fetch, good, f"{origin.url}/slow.zip", replace=True)
    wait_until(lambda: shown(good)["fetch"] is not None)
    assert (shown(good)["version"], shown(good)["fetch"]["state"]) == (1, "fetching")
    assert good.generate(PROMPT, adapter="legal")["adapters"][0]["version"] == 1
    slow.go_on.set()
    assert answer.result().json()["version"] == 2


def test_it_is_cancelled(
    good: Live, origin: HttpsServer, slow: Slow, pool: ThreadPoolExecutor
) -> None:
    answer = pool.submit(fetch, good, f"{origin.url}/slow.zip")
    wait_until(lambda: shown(good)["fetch"]["bytes"] > 0)
    assert good.http.delete("/adapters/legal").status_code == 204
    error = refused(answer.result(), 409, "adapter_conflict")
    assert "cancelled" in error["message"]
    refused(good.http.get("/adapters/legal"), 404, "unknown_adapter")
    refused(good.http.delete("/adapters/legal"), 404, "unknown_adapter")


def test_a_server_that_never_ends_its_answer_is_left(
    tmp_path: Path,
    settings_for: Callable[..., Settings],
    authority: trustme.CA,
    origin: HttpsServer,
    slow: Slow,
) -> None:
    with pytest.MonkeyPatch.context() as patch, authority.cert_pem.tempfile() as trusted:
        patch.setenv("SSL_CERT_FILE", trusted)
        settings = settings_for(
            tmp_path / "home", adapter_sources=(origin.host, "127.0.0.1"), fetch_timeout=0.5
        )
        with serve(settings) as own:
            error = refused(fetch(own, f"{origin.url}/slow.zip"), 502, "source_failed")
            assert "--fetch-timeout" in error["message"]
            wait_until(lambda: not staged(own), "staging to be empty")


def test_a_fetch_alone_is_cancelled(
    good: Live,
    origin: HttpsServer,
    slow: Slow,
    pool: ThreadPoolExecutor,
    archives: Callable[[int], Path],
) -> None:
    before = good.upload("legal", archives(2)).json()
    only = {"fetch": "true"}
    refused(good.http.delete("/adapters/legal", params=only), 404, "unknown_adapter")
    answer = pool.submit(fetch, good, f"{origin.url}/slow.zip", replace=True)
    wait_until(lambda: (good.http.get("/adapters/legal").json()["fetch"] or {}).get("bytes"))
    assert good.http.delete("/adapters/legal", params=only).status_code == 204
    refused(answer.result(), 409, "adapter_conflict")
    assert good.http.get("/adapters/legal").json()["versions"] == before["versions"]
