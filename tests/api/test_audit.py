"""The audit: who changed adapters and keys, from which digest to which, and from where."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, refused, serve
from lorry.access.access_database import AccessFile
from lorry.logs import JsonFormatter
from lorry.settings import Settings
from lorry_adapters.errors import StorageFull
from support.patience import client


@pytest.fixture
def audited(
    tmp_path: Path, settings_for: Callable[..., Settings], peft_adapter: Callable[..., Path]
) -> Iterator[Live]:
    root = peft_adapter("llama", "plain", seed=1).parent
    with serve(settings_for(tmp_path / "home", api_key="s3cret", adapter_roots=(root,))) as one:
        yield one


def entries(of: Live, **query: Any) -> list[dict[str, Any]]:
    """Without numbers and times, the oldest first."""
    found = of.http.get("/audit", params=query).json()["entries"]
    for entry in found:
        assert entry.pop("id") and entry.pop("at").endswith("+00:00")
    return found[::-1]  # type: ignore[no-any-return]


def test_every_change_of_an_adapter(
    audited: Live, archives: Callable[[int], Path], peft_adapter: Callable[..., Path]
) -> None:
    made = audited.http.post("/keys", json={"name": "team", "scopes": ["upload"]}).json()
    with client(audited.url) as one:
        one.headers["Authorization"] = f"Bearer {made['key']}"

        def push(seed: int, **fields: str) -> str:
            with archives(seed).open("rb") as file:
                data = {"name": "legal", **fields}
                answer = one.post("/adapters", data=data, files={"file": ("a.zip", file)})
            assert answer.is_success, answer.text
            return str(answer.json()["digest"])

        first = push(1)
        assert push(1) == first
        assert one.patch("/adapters/legal", json={"scale": 0.5, "pinned": True}).is_success
        assert one.patch("/adapters/legal", json={"scale": 0.5}).is_success
        second = push(2, replace="true")
        assert one.patch("/adapters/legal", json={"version": 1}).is_success
        assert one.delete("/adapters/legal?version=2").is_success
        assert one.delete("/adapters/legal").is_success
        load = {"lora_name": "hot", "lora_path": str(peft_adapter("llama", "plain", seed=1))}
        assert one.post("/v1/load_lora_adapter", json=load).is_success
        assert one.post("/v1/unload_lora_adapter", json={"lora_name": "hot"}).is_success
    found = entries(audited, adapter="legal")
    assert all(entry["key"] == "team" and entry["key_id"] == made["id"] for entry in found)
    assert all(entry["address"] == "127.0.0.1" for entry in found)
    told = [(e["action"], e["digest_before"], e["digest_after"], e["detail"]) for e in found]
    state = {"enabled": [None, True], "scale": [None, 1.0]}
    assert told == [
        (
            "added",
            None,
            first,
            {"version": [None, 1], "pinned": [None, False], "description": [None, ""], **state},
        ),
        ("changed", first, first, {"scale": [1.0, 0.5], "pinned": [False, True]}),
        ("replaced", first, second, {"version": [1, 2]}),
        ("changed", second, first, {"version": [2, 1]}),
        ("changed", first, first, {"removed_versions": [2]}),
        ("removed", first, None, {}),
    ]
    assert [entry["action"] for entry in entries(audited, adapter="hot")] == ["added", "removed"]


def test_every_change_of_a_key(audited: Live) -> None:
    http = audited.http
    body = {"name": "team", "scopes": ["generate"], "adapters": ["legal-*"]}
    text = http.post("/keys", json=body).json()["key"]
    http.patch("/keys/team", json={"limits": {"max_rank": 8}, "scopes": ["upload"]})
    http.patch("/keys/team", json={"limits": {"max_rank": 8}})
    rotated = http.post("/keys/team/rotate", json={"keep_old": 60}).json()["key"]
    http.delete("/keys/team")
    found = entries(audited, key="team")
    assert {entry["key"] for entry in found} == {"LORRY_API_KEY"}
    assert [(entry["action"], entry["detail"]) for entry in found] == [
        (
            "created",
            {
                "scopes": [None, ["generate"]],
                "adapters": [None, ["legal-*"]],
                "limits": [None, {}],
                "description": [None, ""],
            },
        ),
        ("changed", {"scopes": [["generate"], ["upload"]], "limits": [{}, {"max_rank": 8}]}),
        ("rotated", {"keep_old": 60}),
        ("revoked", {}),
    ]
    said = json.dumps(found)
    assert text not in said and rotated not in said


def test_what_is_refused_or_fails_is_no_change(
    audited: Live, archives: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert audited.upload("legal", archives(1)).status_code == 201
    before = entries(audited)
    refused(audited.upload("legal", archives(2)), 409, "adapter_conflict")
    refused(audited.http.patch("/adapters/legal", json={"scale": 99}), 422, "invalid_scale")

    def full(*given: object) -> None:
        raise StorageFull("no room")

    with monkeypatch.context() as broken:
        broken.setattr(audited.server.registry.storage, "save", full)
        refused(audited.http.patch("/adapters/legal", json={"scale": 2}), 507, "storage_full")
    assert entries(audited) == before
    assert audited.http.get("/adapters/legal").json()["scale"] == 1


def test_a_full_disk_does_not_keep_an_adapter(
    audited: Live, archives: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The line is in the log, where the table has no room for it."""
    assert audited.upload("legal", archives(1)).status_code == 201

    def full(*given: object) -> None:
        raise StorageFull("no room")

    caplog.set_level(logging.INFO)
    with monkeypatch.context() as broken:
        broken.setattr(AccessFile, "writing", full)
        assert audited.http.delete("/adapters/legal").status_code == 204
        refused(
            audited.http.post("/keys", json={"name": "a", "scopes": ["upload"]}),
            507,
            "storage_full",
        )
    assert audited.http.get("/keys").json()["keys"] == []
    assert "the audit could not be written: no room" in caplog.messages
    assert "adapter legal removed" in caplog.messages


def test_lines_of_the_log(audited: Live, archives: Callable[[int], Path], caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    digest = audited.upload("legal", archives(1)).json()["digest"]
    (record,) = (one for one in caplog.records if one.name == "lorry.access.audit")
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "adapter legal added"
    assert (line["key"], line["client"]) == ("LORRY_API_KEY", "127.0.0.1")
    assert line["digest_after"] == digest and "digest_before" not in line
    assert line["detail"]["version"] == [None, 1]


def test_pages(audited: Live, archives: Callable[[int], Path]) -> None:
    assert audited.upload("legal", archives(1)).status_code == 201
    for number in range(5):
        audited.http.patch("/adapters/legal", json={"description": f"{number}"})
    first = audited.http.get("/audit?limit=4").json()
    second = audited.http.get(f"/audit?limit=4&before={first['next']}").json()
    ids = [entry["id"] for entry in (*first["entries"], *second["entries"])]
    assert ids == sorted(ids, reverse=True) and len(ids) == 6 and second["next"] is None
    refused(audited.http.get("/audit?limit=0"), 422, "invalid_request")


def test_without_a_key_the_address_is_told(
    tmp_path: Path, settings_for: Callable[..., Settings], archives: Callable[[int], Path]
) -> None:
    with serve(settings_for(tmp_path / "home")) as one:
        assert one.upload("legal", archives(1)).status_code == 201
        (entry,) = entries(one)
        assert (entry["key"], entry["key_id"], entry["address"]) == (None, None, "127.0.0.1")
