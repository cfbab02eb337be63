"""The life of an adapter over HTTP."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from api.live import Live, refused
from support.patience import client

PROMPT = "Ahoy there"
FIELDS = {
    "name",
    "version",
    "digest",
    "enabled",
    "scale",
    "pinned",
    "description",
    "peft_type",
    "rank",
    "target_modules",
    "parameters",
    "bytes",
    "base_model",
    "task_type",
    "virtual_tokens",
    "invocation",
    "scalable",
    "warnings",
    "words",
    "residency",
    "broken",
    "fetch",
    "created_at",
    "updated_at",
    "split",
    "aliases",
    "keep_versions",
    "keep_days",
    "versions",
}


def files_of(folder: Path) -> dict[str, Any]:
    names = ("adapter_config.json", "adapter_model.safetensors")
    return {name: (name, (folder / name).read_bytes()) for name in names}


def test_upload_list_show(fresh: Live, archives: Callable[[int], Path]) -> None:
    answer = fresh.upload("legal", archives(1), scale="0.5", description="for contracts")
    record = answer.json()
    assert answer.status_code == 201
    assert record.keys() == FIELDS
    assert (record["name"], record["version"], record["enabled"]) == ("legal", 1, True)
    assert (record["scale"], record["pinned"]) == (0.5, False)
    assert (record["rank"], record["residency"], record["broken"]) == (8, "disk", None)
    assert answer.headers["etag"] == f'"{record["digest"]}"'
    assert record["versions"][0]["digest"] == record["digest"]
    assert fresh.http.get("/adapters/legal").json() == record
    assert fresh.http.get("/adapters").json() == {"adapters": [record]}
    fresh.generate(PROMPT, adapter="legal")
    assert fresh.http.get("/adapters/legal").json()["residency"] == "device"


def test_the_same_again_is_no_news_and_other_content_is_a_conflict(
    fresh: Live, archives: Callable[[int], Path]
) -> None:
    first = fresh.upload("legal", archives(1)).json()
    again = fresh.upload("legal", archives(1), scale="2")
    assert (again.status_code, again.json()) == (200, first)
    refused(fresh.upload("legal", archives(2)), 409, "adapter_conflict")
    replaced = fresh.upload("legal", archives(2), replace="true")
    assert replaced.status_code == 201
    assert [one["version"] for one in replaced.json()["versions"]] == [1, 2]


def test_two_files_under_their_own_names(
    fresh: Live, archives: Callable[[int], Path], peft_adapter: Callable[..., Path]
) -> None:
    digest = fresh.upload("zip", archives(1)).json()["digest"]
    files = files_of(peft_adapter("llama", "plain", seed=1))
    answer = fresh.http.post("/adapters", data={"name": "two"}, files=files)
    assert (answer.status_code, answer.json()["digest"]) == (201, digest)
    both = [("file", part) for part in files.values()]
    answer = fresh.http.post("/adapters", data={"name": "same-field"}, files=both)
    assert (answer.status_code, answer.json()["digest"]) == (201, digest)


def test_from_a_folder_of_the_server(
    fresh: Live, peft_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = peft_adapter("llama", "plain", seed=1)
    body = {"name": "local", "source": str(folder), "scale": 0.25, "pinned": True}
    answer = fresh.http.post("/adapters", json=body)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["scale"], answer.json()["pinned"]) == (0.25, True)
    answer = fresh.http.post("/adapters", json={**body, "source": folder.as_uri()})
    assert answer.status_code == 200
    for source in ("/etc", str(tmp_path), str(folder / ".." / ".." / "..")):
        body = {"name": "other", "source": source}
        refused(fresh.http.post("/adapters", json=body), 403, "forbidden_source")
    for source in ("relative", "./org/name", "ftp://x/y", "http://x/y"):
        body = {"name": "other", "source": source}
        refused(fresh.http.post("/adapters", json=body), 422, "unsupported_parameter")
    for wrong in ({"name": "x"}, {"source": "/x"}, {"name": "x", "source": "/x", "y": 1}):
        refused(fresh.http.post("/adapters", json=wrong), 422, "invalid_request")


def computed(live: Live, adapter: Any) -> dict[str, Any]:
    """The answer without the prefix cache, which would round and count differently."""
    return live.generate(PROMPT, adapter=adapter, parameters={"cache_prompt": False})


def test_disable_enable_scale(fresh: Live, archives: Callable[[int], Path]) -> None:
    fresh.upload("legal", archives(1))
    half = computed(fresh, {"name": "legal", "scale": 0.5})
    answer = fresh.http.patch("/adapters/legal", json={"scale": 0.5, "description": "half"})
    assert (answer.json()["scale"], answer.json()["description"]) == (0.5, "half")
    assert computed(fresh, "legal") == half
    assert fresh.http.patch("/adapters/legal", json={"enabled": False}).json()["enabled"] is False
    off = fresh.http.post("/generate", json={"inputs": PROMPT, "adapter": "legal"})
    assert (off.status_code, off.json()["error_type"]) == (409, "adapter_disabled")
    body = {"model": "legal", "prompt": PROMPT}
    refused(fresh.http.post("/v1/completions", json=body), 409, "adapter_disabled")
    assert [one["id"] for one in fresh.http.get("/v1/models").json()["data"]] == ["tiny"]
    assert fresh.http.patch("/adapters/legal", json={"enabled": True}).status_code == 200
    assert computed(fresh, "legal") == half
    nothing = fresh.http.patch("/adapters/legal", json={"scale": None})
    assert nothing.json()["scale"] == 0.5


def test_versions(fresh: Live, archives: Callable[[int], Path]) -> None:
    first = fresh.upload("legal", archives(1)).json()
    before = computed(fresh, "legal")
    with archives(2).open("rb") as file:
        put = fresh.http.put(
            "/adapters/legal",
            files={"file": file},
            headers={"If-Match": f'"{first["digest"]}"'},
        )
    assert put.status_code == 200, put.text
    assert put.json()["version"] == 2
    after = computed(fresh, "legal")
    assert after["generated_text"] != before["generated_text"]
    assert computed(fresh, "legal@1") == before
    back = fresh.http.patch("/adapters/legal", json={"version": 1})
    assert back.json()["version"] == 1 and back.headers["etag"] == f'"{first["digest"]}"'
    assert computed(fresh, "legal") == before
    refused(fresh.http.patch("/adapters/legal", json={"version": 9}), 404, "unknown_adapter")
    current = fresh.http.delete("/adapters/legal", params={"version": 1})
    refused(current, 409, "adapter_conflict")
    assert fresh.http.delete("/adapters/legal", params={"version": 2}).status_code == 204
    gone = fresh.http.post("/generate", json={"inputs": PROMPT, "adapter": "legal@2"})
    assert gone.status_code == 404


def test_compare_and_swap(fresh: Live, archives: Callable[[int], Path]) -> None:
    fresh.upload("legal", archives(1))
    stale = {"If-Match": '"sha256:' + "0" * 64 + '"'}
    with archives(2).open("rb") as file:
        answer = fresh.http.put("/adapters/legal", files={"file": file}, headers=stale)
    refused(answer, 412, "digest_mismatch")
    answer = fresh.http.patch("/adapters/legal", json={"scale": 2}, headers=stale)
    refused(answer, 412, "digest_mismatch")
    assert fresh.http.get("/adapters/legal").json()["scale"] == 1.0
    with archives(2).open("rb") as file:
        answer = fresh.http.put("/adapters/legal", files={"file": file}, headers={"If-Match": "*"})
    assert answer.status_code == 200


def test_put_is_for_versions_only(fresh: Live, archives: Callable[[int], Path]) -> None:
    with archives(1).open("rb") as file:
        answer = fresh.http.put("/adapters/nobody", files={"file": file})
    refused(answer, 404, "unknown_adapter")
    fresh.upload("legal", archives(1))
    with archives(2).open("rb") as file:
        data = {"name": "other", "scale": "2", "x": "y"}
        answer = fresh.http.put("/adapters/legal", data=data, files={"file": file})
    problems = refused(answer, 422, "invalid_request")["problems"]
    assert len(problems) == 3
    answer = fresh.http.put("/adapters/legal", json={"source": "/x"})
    refused(answer, 415, "unsupported_media_type")


def test_delete_while_it_runs(fresh: Live, archives: Callable[[int], Path]) -> None:
    fresh.upload("legal", archives(1))
    parameters = {"max_new_tokens": 200, "ignore_eos_token": True}
    whole = fresh.generate(PROMPT, adapter="legal", parameters=parameters)
    body = {"inputs": PROMPT, "adapter": "legal", "parameters": parameters}
    with fresh.http.stream("POST", "/generate_stream", json=body) as response:
        lines = (line for line in response.iter_lines() if line)
        first = json.loads(next(lines).removeprefix("data:"))
        with client(fresh.url) as other:
            assert other.delete("/adapters/legal").status_code == 204
            assert other.post("/generate", json=body).status_code == 404
            refused(other.get("/adapters/legal"), 404, "unknown_adapter")
            refused(other.delete("/adapters/legal"), 404, "unknown_adapter")
        last = json.loads(list(lines)[-1].removeprefix("data:"))
    assert last["generated_text"] == whole["generated_text"]
    assert last["adapters"] == first["adapters"] == whole["adapters"]
    assert fresh.metric("lorry_adapter_requests_total", adapter="legal") == 0


def test_the_files_come_back(
    fresh: Live, archives: Callable[[int], Path], peft_adapter: Callable[..., Path]
) -> None:
    digest = fresh.upload("legal", archives(1)).json()["digest"]
    answer = fresh.http.get("/adapters/legal/content")
    assert answer.headers["content-type"] == "application/x-tar"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        weights = tar.extractfile("adapter_model.safetensors")
        assert weights is not None
        folder = peft_adapter("llama", "plain", seed=1)
        assert weights.read() == (folder / "adapter_model.safetensors").read_bytes()
    files = {"file": ("back.tar", answer.content)}
    again = fresh.http.post("/adapters", data={"name": "again"}, files=files)
    assert again.json()["digest"] == digest
    assert fresh.http.get("/adapters/legal/content", params={"version": 2}).status_code == 404


def test_files_that_were_damaged_on_the_disk(fresh: Live, archives: Callable[[int], Path]) -> None:
    digest = fresh.upload("legal", archives(1)).json()["digest"]
    folder = fresh.server.registry.folder(digest)
    for file in folder.iterdir():
        file.chmod(0o600)
        file.write_bytes(b"damaged")
    for path in ("/generate", "/generate_stream"):
        answer = fresh.http.post(path, json={"inputs": PROMPT, "adapter": "legal"})
        assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_broken")
    answer = fresh.http.post("/v1/completions", json={"model": "legal", "prompt": "x"})
    refused(answer, 400, "adapter_broken")
    assert fresh.http.get("/adapters/legal").json()["broken"]
    assert fresh.http.get("/adapters/legal/content").status_code == 422
    fresh.generate(PROMPT)
    # The same files again mend it.
    assert fresh.upload("legal", archives(1)).status_code == 200
    fresh.generate(PROMPT, adapter="legal")


def test_vllms_routes(
    fresh: Live, peft_adapter: Callable[..., Path], archives: Callable[[int], Path]
) -> None:
    one, two = (str(peft_adapter("llama", "plain", seed=seed)) for seed in (1, 2))
    marked = Path(shutil.copytree(one, peft_adapter("llama", "plain", seed=1).parent / "marked"))
    config = marked / "adapter_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())

    def load(**body: Any) -> httpx.Response:
        return fresh.http.post("/v1/load_lora_adapter", json=body)

    def unload(**body: Any) -> httpx.Response:
        return fresh.http.post("/v1/unload_lora_adapter", json=body)

    def wrong(answer: httpx.Response, status: int, kind: str) -> None:
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == (kind, status)

    answer = load(lora_name="a", lora_path=one)
    assert answer.status_code == 200
    assert answer.text == "Success: LoRA adapter 'a' added successfully."
    assert answer.headers["content-type"].startswith("text/plain")
    assert fresh.generate(PROMPT, adapter="a")["adapters"][0]["version"] == 1
    wrong(load(lora_name="a", lora_path=one), 400, "InvalidUserInput")
    assert load(lora_name="a", lora_path=two, load_inplace=True).status_code == 200
    assert fresh.generate(PROMPT, adapter="a")["adapters"][0]["version"] == 2
    wrong(load(lora_name="a"), 400, "InvalidUserInput")
    wrong(load(lora_path=one), 400, "InvalidUserInput")
    wrong(load(lora_name="b", lora_path="org/name"), 403, "PermissionDeniedError")
    wrong(load(lora_name="b", lora_path="relative"), 400, "InvalidUserInput")
    wrong(load(lora_name="b", lora_path="/etc"), 403, "PermissionDeniedError")
    assert load(lora_name="windows", lora_path=str(marked)).status_code == 200
    first, second = (fresh.generate(PROMPT, adapter=name) for name in ("a@1", "windows"))
    assert first["generated_text"] == second["generated_text"]
    answer = unload(lora_name="a", lora_int_id=None)
    assert answer.text == "Success: LoRA adapter 'a' removed successfully."
    wrong(unload(lora_name="a"), 404, "NotFoundError")
    wrong(unload(), 400, "InvalidUserInput")
