"""Adapters in an S3 store, with the home folder as their cache: real HTTP both ways."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, refused, serve
from api.s3 import S3, serve_s3
from lorry.settings import Settings
from lorry_adapters.registry import cached_blobs
from support.patience import wait_until

PROMPT = "The lorry waited"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serve_s3() as server:
        yield server


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings], s3: S3
) -> Iterator[Live]:
    """No host cache, so that every load reads the files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached_blobs, "RETRY", 0.05)
        patch.setattr(cached_blobs, "PROBE", 0.1)
        home = tmp_path_factory.mktemp("home")
        settings = settings_for(home, store="s3://team/lorry", host_cache_memory=0, max_loras=1)
        with serve(settings) as one:
            yield one


@pytest.fixture
def two(stored: Live, archives: Callable[[int], Path]) -> Iterator[dict[str, str]]:
    """Two adapters and their digests."""
    digests = {}
    for seed, name in ((1, "pirate"), (2, "legal")):
        answer = stored.upload(name, archives(seed))
        assert answer.status_code == 201, answer.text
        digests[name] = answer.json()["digest"]
    yield digests
    for record in stored.http.get("/adapters").json()["adapters"]:
        stored.http.delete(f"/adapters/{record['name']}")
    stored.wait_until_idle()


def text_of(live: Live, name: str) -> Any:
    answer = live.generate(PROMPT, adapter=name)
    return answer["generated_text"], answer["adapters"]


def leave_cache(live: Live, digest: str) -> Path:
    folder = live.server.settings.home / "blobs" / digest.replace(":", "-")
    shutil.rmtree(folder)
    return folder


def test_what_left_the_folder_answers_the_same(stored: Live, two: dict[str, str], s3: S3) -> None:
    before = {name: text_of(stored, name) for name in two}
    assert before["pirate"] != before["legal"]
    for name, digest in two.items():
        keys = {key for key in s3.found() if digest.replace(":", "-") in key}
        assert {key.rsplit("/", 1)[1] for key in keys} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "complete.json",
        }
        # Another one takes the only slot.
        text_of(stored, next(other for other in two if other != name))
        folder = leave_cache(stored, digest)
        assert text_of(stored, name) == before[name]
        assert folder.is_dir()


def test_a_removed_one_leaves_the_store(stored: Live, two: dict[str, str], s3: S3) -> None:
    assert stored.http.delete("/adapters/legal").status_code == 204
    wait_until(lambda: not any(two["legal"].replace(":", "-") in key for key in s3.found()))
    assert any(two["pirate"].replace(":", "-") in key for key in s3.found())


def test_a_damaged_copy_is_refused_by_name(
    stored: Live, two: dict[str, str], s3: S3, archives: Callable[[int], Path]
) -> None:
    before = text_of(stored, "pirate")
    text_of(stored, "legal")
    (key,) = (key for key in s3.found() if two["pirate"].replace(":", "-") in key and "safe" in key)
    client = s3.client()
    data = bytearray(client.get_object(Bucket="team", Key=key)["Body"].read())
    data[-1] ^= 1
    client.put_object(Bucket="team", Key=key, Body=bytes(data))
    folder = leave_cache(stored, two["pirate"])
    body = {"inputs": PROMPT, "adapter": "pirate"}
    error = stored.http.post("/generate", json=body)
    assert error.status_code == 422 and error.json()["error_type"] == "adapter_broken"
    assert "its copy in the store s3://team/lorry is damaged" in error.json()["error"]
    assert not folder.exists() and text_of(stored, "legal")
    assert stored.upload("pirate", archives(1)).status_code == 200
    assert text_of(stored, "pirate") == before
    text_of(stored, "legal")
    leave_cache(stored, two["pirate"])
    assert text_of(stored, "pirate") == before


def test_a_store_that_goes_away_and_comes_back(
    stored: Live, two: dict[str, str], s3: S3, archives: Callable[[int], Path]
) -> None:
    before = {name: text_of(stored, name) for name in two}
    leave_cache(stored, two["pirate"])
    s3.leave()
    try:
        # What is here is served, and what is not is refused by name.
        assert text_of(stored, "legal") == before["legal"]
        answer = stored.http.post("/generate", json={"inputs": PROMPT, "adapter": "pirate"})
        assert answer.status_code == 503 and "s3://team/lorry" in answer.json()["error"]
        answer = stored.upload("third", archives(3))
        assert "s3://team/lorry" in refused(answer, 503, "store_unavailable")["message"]
        assert answer.headers["retry-after"]
        ready = stored.http.get("/health/ready")
        assert ready.status_code == 200 and "uploads are refused" in ready.json()["warning"]
        refused(stored.http.get("/adapters/third"), 404, "unknown_adapter")
        assert stored.http.patch("/adapters/legal", json={"scale": 0.5}).status_code == 200
    finally:
        s3.come_back()
    wait_until(lambda: "warning" not in stored.http.get("/health/ready").json())
    assert text_of(stored, "pirate") == before["pirate"]
    assert stored.upload("third", archives(3)).status_code == 201


def test_what_the_store_was_asked_is_in_the_metrics(
    stored: Live, two: dict[str, str], s3: S3
) -> None:
    def read() -> float:
        return stored.metric("lorry_store_bytes_total", operation="read")

    def count(operation: str, outcome: str) -> float:
        name = "lorry_store_operations_total"
        return stored.metric(name, operation=operation, outcome=outcome)

    text_of(stored, "legal")
    before = read()
    folder = leave_cache(stored, two["pirate"])
    # An engine in a process of its own reads by itself, and is not counted.
    assert stored.http.get("/adapters/pirate/content").status_code == 200
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert read() - before >= size
    assert stored.metric("lorry_store_bytes_total", operation="write") >= 2 * size
    assert count("write", "ok") >= 6
    assert stored.metric("lorry_store_operation_seconds_total", operation="write") > 0
    failed = count("read", "failed")
    s3.leave()
    try:
        wait_until(lambda: count("read", "failed") > failed)
    finally:
        s3.come_back()
    wait_until(lambda: "warning" not in stored.http.get("/health/ready").json())
    answered = count("read", "ok")
    wait_until(lambda: count("read", "ok") > answered)


def test_others_go_on_while_one_is_fetched(
    stored: Live, two: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from lorry_adapters.registry.object_store import ObjectStore

    if stored.server.core is None:
        pytest.skip("the files are read in the engine's process, out of this test's reach")
    go_on, begun = threading.Event(), threading.Event()
    get = ObjectStore.get

    def slow(self: ObjectStore, digest: str, folder: Path, *, limit: int) -> bool:
        begun.set()
        go_on.wait()
        return get(self, digest, folder, limit=limit)

    before = text_of(stored, "pirate")
    text_of(stored, "legal")
    leave_cache(stored, two["pirate"])
    monkeypatch.setattr(ObjectStore, "get", slow)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(text_of, stored, "pirate")
        try:
            begun.wait()
            for _ in range(3):
                text_of(stored, "legal")
            assert stored.http.get("/health/ready").status_code == 200
            assert not answer.done()
        finally:
            go_on.set()
        assert answer.result() == before
