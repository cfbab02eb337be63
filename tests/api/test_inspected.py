"""`?inspect=true`: where an adapter acts, against its tensors as the test reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from api.live import Live, refused, serve
from lorry.settings import Settings
from support.patience import client
from support.peft_kinds import KINDS
from support.peft_made import load_base, make

INSPECT = {"inspect": "true"}


def inspected(live: Live, name: str) -> dict[str, Any]:
    answer = live.http.get(f"/adapters/{name}", params=INSPECT)
    assert answer.status_code == 200, answer.text
    return answer.json()["inspection"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "method", "variants"),
    [
        ("lora", "LoRA", []),
        ("dora", "LoRA", ["DoRA"]),
        ("ia3, feedforward", "(IA)3", []),
        ("prompt tuning", "prompt tuning", []),
        ("modules_to_save=head", "LoRA", ["modules_to_save"]),
    ],
)
def test_each_kind(
    fresh: Live,
    tiny_model: Callable[[str], Path],
    zip_of: Callable[[Path], Path],
    tmp_path: Path,
    kind: str,
    method: str,
    variants: list[str],
) -> None:
    make(KINDS[kind], "llama", load_base(tiny_model("llama")), tmp_path)
    assert fresh.upload("one", zip_of(tmp_path)).status_code == 201
    record = fresh.http.get("/adapters/one", params=INSPECT).json()
    found = record["inspection"]
    assert (found["method"], found["variants"]) == (method, variants)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    parameters = sum(one.numel() for one in tensors.values())
    base = fresh.http.get("/info").json()["parameters"]
    assert record["parameters"] == sum(one["parameters"] for one in found["modules"]) == parameters
    assert found["share"] == pytest.approx(parameters / base)
    norms = {one["module"]: one["norm"] for one in found["modules"]}
    assert norms == pytest.approx(expected(tensors, norms))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert found["trained_with"] == config["peft_version"]


def expected(tensors: dict[str, torch.Tensor], modules: Any) -> dict[str, float | None]:
    """The norms of rank 8 and alpha 16, or of gains."""
    found: dict[str, float | None] = {}
    for module in modules:
        mine = {
            key.removeprefix(f"base_model.model.{module}."): value.double()
            for key, value in tensors.items()
            if key.startswith(f"base_model.model.{module}.")
        }
        if "lora_A.weight" in mine:
            found[module] = 2 * float((mine["lora_B.weight"] @ mine["lora_A.weight"]).norm())
        elif "ia3_l" in mine:
            found[module] = float((mine["ia3_l"] - 1).norm())
        else:
            found[module] = None
    return found


def test_its_own_words_are_shown(
    fresh: Live,
    peft_adapter: Callable[..., Path],
    zip_of: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "worded"
    shutil.copytree(peft_adapter("llama", "plain", seed=1), folder)
    template = "{% for m in messages %}<b>{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "bad", "1": "good"}}))
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.5})
    )
    assert fresh.upload("worded", zip_of(folder)).status_code == 201
    found = inspected(fresh, "worded")
    assert found["chat_templates"] == {"default": template}
    assert found["labels"] == ["bad", "good"]
    assert found["generation"] == {"temperature": 0.5}


def test_only_on_request_and_of_the_version_that_a_name_means(
    fresh: Live, archives: Callable[[int], Path]
) -> None:
    fresh.upload("legal", archives(1))
    assert "inspection" not in fresh.http.get("/adapters/legal").json()
    first = inspected(fresh, "legal")
    fresh.upload("legal", archives(2), replace="true")
    fresh.http.patch("/adapters/legal", json={"aliases": {"old": 1}, "enabled": False})
    second = inspected(fresh, "legal")
    assert second["modules"] != first["modules"]
    assert inspected(fresh, "old") == first


def test_files_are_read_once(fresh: Live, archives: Callable[[int], Path]) -> None:
    digest = fresh.upload("legal", archives(3)).json()["digest"]
    first = inspected(fresh, "legal")
    for file in fresh.server.registry.folder(digest).iterdir():
        file.chmod(0o600)
        file.write_bytes(b"damaged")
    assert inspected(fresh, "legal") == first


def test_files_that_are_damaged_are_said_to_be(
    fresh: Live, archives: Callable[[int], Path]
) -> None:
    digest = fresh.upload("legal", archives(4)).json()["digest"]
    for file in fresh.server.registry.folder(digest).iterdir():
        file.chmod(0o600)
        file.write_bytes(b"damaged")
    refused(fresh.http.get("/adapters/legal", params=INSPECT), 422, "adapter_broken")


def test_a_key_inspects_what_it_sees(
    settings_for: Callable[..., Settings], archives: Callable[[int], Path], tmp_path: Path
) -> None:
    with serve(settings_for(tmp_path, api_key="s3cret")) as live:
        for name in ("own", "foreign"):
            assert live.upload(name, archives(1)).status_code == 201
        body = {"name": "k", "scopes": ["generate"], "adapters": ["own"]}
        key = live.http.post("/keys", json=body).json()["key"]
        with client(live.url) as http:
            asked = {"params": INSPECT}
            assert http.get("/adapters/own", **asked).status_code == 401
            http.headers["x-api-key"] = key
            assert http.get("/adapters/own", **asked).json()["inspection"]["modules"]
            # The same content, read already, under a name that the key does not see.
            refused(http.get("/adapters/foreign", **asked), 404, "unknown_adapter")
