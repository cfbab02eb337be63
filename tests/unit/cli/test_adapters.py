"""`lorry adapters` against the real HTTP routes and a real registry; only the engine is idle."""

from __future__ import annotations

import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file

from lorry.access.access_control import AccessControl
from lorry.api.app import Services, create_app
from lorry.bootstrap import KEEP_ALIVE
from lorry.cli import main
from lorry.cli.offline import outline
from lorry.core import Base, EngineStats
from lorry.metrics import Metrics
from lorry.settings import Settings
from lorry_adapters.registry.blobs import digest_of, files_in
from lorry_adapters.registry.registry import Registry
from support.expert_orders import UNSLOTH
from support.patience import wait_until
from support.peft_adapters import edit_config
from support.peft_kinds import KINDS
from support.peft_made import load_base, make
from support.tokenizer import EOS, VOCAB_SIZE, build_tokenizer

KEY = "a key"


@pytest.fixture
def url(tmp_path: Path, tiny_model, request: pytest.FixtureRequest) -> Iterator[str]:
    base = tiny_model(getattr(request, "param", "llama"))
    settings = Settings(model=str(base), api_key=KEY, max_upload=1 << 20)
    access = AccessControl(KEY)
    registry = Registry(
        tmp_path / "home",
        outline(settings).layout,
        max_rank=settings.max_lora_rank,
        max_upload=settings.max_upload,
        max_host_bytes=1 << 20,
        reserved_names=frozenset({"base"}),
        policy=access.policy,
        allowed_roots=(tmp_path / "sources",),
    )
    access.open(tmp_path / "home", registry)
    app = create_app(
        Services(
            client=cast(Any, SimpleNamespace(stats=EngineStats(), ready=True)),
            registry=registry,
            tokenizer=build_tokenizer(add_bos=False),
            settings=settings,
            metrics=Metrics(CollectorRegistry(), base_name="base"),
            base=Base(
                name="base",
                other_names=(),
                repository=None,
                source="base",
                quantization="none",
                eos_token_ids=frozenset({EOS}),
                max_model_len=128,
                vocab_size=VOCAB_SIZE,
                about={
                    "max_lora_rank": settings.max_lora_rank,
                    "memory": {},
                    "parameters": 1,
                },
            ),
            access=access,
        )
    )
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="error", timeout_keep_alive=KEEP_ALIVE
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the server to listen")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        access.close()
        registry.close()


@pytest.fixture
def lorry(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`lorry("list")`: runs `lorry adapters list`; what it wrote as JSON, or the error's line."""
    monkeypatch.setenv("LORRY_URL", url)
    monkeypatch.setenv("LORRY_API_KEY", KEY)

    def run(*arguments: str, code: int = 0) -> Any:
        given = main(["adapters", *arguments, "--json"])
        captured = capsys.readouterr()
        assert given == code, captured.err
        if code:
            assert captured.out == ""
            assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
            return captured.err
        assert captured.err == ""
        return json.loads(captured.out)

    return run


def test_a_missing_key_is_asked_for_by_its_flag(lorry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORRY_API_KEY")
    for wrong in ([], ["--api-key", "another"]):
        assert "(--api-key KEY, or LORRY_API_KEY)" in lorry("list", *wrong, code=1)


def test_other_content_under_a_name_says_how_to_replace(lorry, peft_adapter) -> None:
    lorry("push", str(peft_adapter("llama", "plain")), "--name", "legal")
    other = str(peft_adapter("llama", "rslora"))
    assert "push FOLDER --replace" in lorry("push", other, "--name", "legal", code=1)
    assert lorry("push", other, "--name", "legal", "--replace")["version"] == 2


def test_the_life_of_an_adapter(lorry, peft_adapter, tmp_path: Path) -> None:
    folder = peft_adapter("llama", "plain")
    record = lorry("push", str(folder), "--name", "legal", "--scale", "0.5", "--description", "é")
    assert (record["name"], record["version"], record["scale"]) == ("legal", 1, 0.5)
    assert record["enabled"] and not record["pinned"]
    assert record["description"] == "é"
    assert [item["name"] for item in lorry("list")["adapters"]] == ["legal"]
    assert lorry("disable", "legal")["enabled"] is False
    assert lorry("enable", "legal")["enabled"] is True
    assert lorry("scale", "legal", "-0.25")["scale"] == -0.25
    assert lorry("pin", "legal")["pinned"] is True
    assert lorry("unpin", "legal")["pinned"] is False
    assert lorry("show", "legal")["digest"] == record["digest"]
    assert lorry("rm", "legal") == {"removed": ["legal"]}
    assert lorry("list") == {"adapters": []}


def test_flags_of_push(lorry, peft_adapter) -> None:
    folder = peft_adapter("llama", "plain")
    record = lorry("push", str(folder), "--name", "a", "--disabled", "--pinned")
    assert record["enabled"] is False
    assert record["pinned"] is True


def test_a_source_is_read_by_the_server(lorry, peft_adapter, tmp_path: Path) -> None:
    folder = shutil.copytree(peft_adapter("llama", "plain"), tmp_path / "sources" / "a")
    record = lorry("push", "legal", "--from", str(folder), "--scale", "-0.5", "--pinned")
    assert (record["name"], record["scale"], record["pinned"]) == ("legal", -0.5, True)
    pushed = lorry("push", str(folder), "--name", "same", "--pinned", "--disabled")
    assert (pushed["digest"], pushed["enabled"]) == (record["digest"], False)
    assert "--adapter-sources" in lorry("push", "a", "--from", "org/name", code=1)


def test_other_content_under_the_name_needs_replace(lorry, peft_adapter) -> None:
    first, second = peft_adapter("llama", "plain"), peft_adapter("llama", "plain", seed=5)
    lorry("push", str(first), "--name", "a")
    assert "a" in lorry("push", str(second), "--name", "a", code=1)
    assert lorry("push", str(second), "--name", "a", "--replace")["version"] == 2
    lorry("rm", "a", "--version", "1")
    assert [item["version"] for item in lorry("show", "a")["versions"]] == [2]


def test_an_archive_is_pushed_as_it_is(lorry, peft_adapter, tmp_path: Path) -> None:
    folder = peft_adapter("llama", "plain")
    digest = lorry("push", str(folder), "--name", "a")["digest"]
    archive = shutil.make_archive(str(tmp_path / "adapter"), "zip", folder)
    assert lorry("push", archive, "--name", "b")["digest"] == digest


def test_pull_gives_the_files_back(lorry, peft_adapter, tmp_path: Path) -> None:
    folder = peft_adapter("llama", "plain")
    lorry("push", str(folder), "--name", "a")
    target = tmp_path / "deep" / "copy"
    names = lorry("pull", "a", str(target))["files"]
    for name in names:
        assert (target / name).read_bytes() == (folder / name).read_bytes()
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(names)
    assert sorted(item.name for item in target.parent.iterdir()) == ["copy"]
    assert "not an empty folder" in lorry("pull", "a", str(target), code=1)


def test_pull_of_an_unknown_adapter_leaves_nothing(lorry, tmp_path: Path) -> None:
    lorry("pull", "nobody", str(tmp_path / "copy"), code=1)
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_every_problem_of_a_refused_upload_is_in_the_line(
    lorry, peft_adapter, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(peft_adapter("llama", "plain"), folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    first, second, *_ = sorted(tensors)
    tensors[first] = tensors[first][:, :-1].contiguous()
    tensors[second][0, 0] = float("inf")
    save_file(tensors, folder / "adapter_model.safetensors")
    line = lorry("push", str(folder), "--name", "a", code=1)
    assert first in line
    assert second in line


def test_the_same_problem_in_every_layer_is_told_once(lorry, peft_adapter, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(peft_adapter("llama", "plain"), folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    spoilt = [key for key in sorted(tensors) if key.endswith("q_proj.lora_A.weight")]
    assert len(spoilt) > 1
    for key in spoilt:
        tensors[key] = tensors[key][:, :-1].contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    line = lorry("push", str(folder), "--name", "a", code=1)
    assert line.count("q_proj") == 1 and spoilt[0] in line
    assert line.rstrip().endswith(f"(and {len(spoilt) - 1} like it)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nobody"], "nobody"),
        (["rm", "nobody"], "nobody"),
        (["enable", "no/body"], "no/body"),
    ],
)
def test_what_the_server_refuses_is_one_line(lorry, arguments: list[str], said: str) -> None:
    assert said in lorry(*arguments, code=1)


def test_a_scale_beyond_the_limit_is_refused_with_it(lorry, peft_adapter) -> None:
    lorry("push", str(peft_adapter("llama", "plain")), "--name", "a")
    assert "16" in lorry("scale", "a", "17", code=1)
    assert lorry("show", "a")["scale"] == 1


def test_a_pickle_is_refused_before_anything_is_sent(lorry, peft_adapter, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(peft_adapter("llama", "plain") / "adapter_config.json", folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    assert "pickle" in lorry("push", str(folder), "--name", "a", code=1)


def test_tools_take_an_adapter_of_the_server(lorry, peft_adapter, tmp_path: Path) -> None:
    folders = [peft_adapter("llama", "plain", seed=seed) for seed in (0, 1)]
    lorry("push", str(folders[0]), "--name", "a")
    lorry("push", str(folders[1]), "--name", "a", "--replace")
    norms = [lorry("inspect", name)["norm"] for name in ("a@1", "a")]
    assert norms == [lorry("inspect", str(folder))["norm"] for folder in folders]
    lorry("merge", "a@1:0.5", f"{folders[1]}:0.5", "--out", str(tmp_path / "out"))
    assert lorry("push", str(tmp_path / "out"), "--name", "both")["rank"] == 16
    assert "nobody" in lorry("inspect", "nobody", code=1)


def test_what_is_too_large_is_refused_with_the_limit(lorry, tmp_path: Path) -> None:
    archive = tmp_path / "large.tar"
    archive.write_bytes(bytes(2 << 20))
    assert str(1 << 20) in lorry("push", str(archive), "--name", "a", code=1)


def test_a_wrong_key_is_one_line(lorry) -> None:
    assert "key" in lorry("list", "--api-key", "another", code=1)


def test_people_see_a_table(
    url: str, lorry, peft_adapter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapters", "list"]) == 0
    assert "no adapters" in capsys.readouterr().err
    lorry("push", str(peft_adapter("llama", "plain")), "--name", "x-legal")
    assert main(["adapters", "list"]) == 0
    header, _, row = (line.split() for line in capsys.readouterr().out.splitlines()[:3])
    assert header[:4] == ["name", "version", "type", "state"]
    assert row[:4] == ["x-legal", "1", "LORA", "enabled"]
    assert main(["adapters", "show", "x-legal"]) == 0
    assert "target modules" in capsys.readouterr().out
    assert main(["adapters", "disable", "x-legal"]) == 0
    assert capsys.readouterr().out.startswith("x-legal@1 sha256:")


def test_a_server_that_answers_nonsense_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import http.server

    class Nonsense(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html>" if self.path == "/adapters" else _evil_tar(tmp_path)
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("LORRY_URL", f"http://127.0.0.1:{server.server_port}")
        assert main(["adapters", "list"]) == 1
        assert "is it a Lorry server" in capsys.readouterr().err
        assert main(["adapters", "pull", "a", str(tmp_path / "copy")]) == 1
        server.shutdown()
    assert not (tmp_path / "evil.txt").exists()
    assert not (tmp_path / "copy").exists()


def _evil_tar(folder: Path) -> bytes:
    """A tar that would write beside the folder it is unpacked in."""
    inner = folder / "inner.txt"
    inner.write_text("evil")
    path = folder / "evil.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "../evil.txt")
    return path.read_bytes()


@pytest.mark.parametrize("url", ["mixtral"], indirect=True)
def test_a_doubt_about_what_was_taken_is_said_at_once_and_kept(
    url: str, tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "unsloth"
    make(KINDS["target_parameters"], "mixtral", load_base(tiny_model("mixtral")), folder)
    edit_config(folder, auto_mapping=UNSLOTH)
    base = ["--base", str(tiny_model("mixtral"))]
    assert main(["adapters", "check", str(folder), *base]) == 0
    cure = "lorry adapters convert FOLDER --experts-grouped --out DIR"
    assert cure in " ".join(capsys.readouterr().out.split("warning: ")[1].split())
    server = ["--url", url, "--api-key", KEY]
    assert main(["adapters", "push", str(folder), "--name", "doubtful", *server]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("doubtful@1 sha256:") and said.err.startswith("warning: ")
    assert cure in said.err
    assert main(["adapters", "show", "doubtful", *server, "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning in said.err
    out = tmp_path / "converted"
    assert main(["adapters", "convert", str(folder), "--experts-grouped", "--out", str(out)]) == 0
    assert main(["adapters", "push", str(out), "--name", "certain", *server]) == 0
    assert capsys.readouterr().err == ""


def lost(home: Path, folder: Path) -> str:
    """An adapter's files in the home, and nothing that knows of them; the digest."""
    digest = digest_of(folder)
    target = home / "blobs" / digest.replace(":", "-")
    target.mkdir()
    for name in files_in(folder):
        shutil.copy(folder / name, target)
    return digest


def test_files_without_a_record_become_adapters(lorry, peft_adapter, tmp_path: Path) -> None:
    assert lorry("recover") == {"recovered": []}
    first = lost(tmp_path / "home", peft_adapter("llama", "plain"))
    second = lost(tmp_path / "home", peft_adapter("llama", "plain", seed=5))
    found = lorry("recover", "--list")["unclaimed"]
    assert {content["digest"] for content in found} == {first, second}
    assert all(content["bytes"] > 0 for content in found)
    assert lorry("list") == {"adapters": []}
    assert "--name" in lorry("recover", "--name", "legal", code=2)
    assert "0 stored contents" in lorry("recover", "0" * 64, code=1)
    (record,) = lorry("recover", first[7:20], "--name", "legal")["recovered"]
    assert (record["name"], record["digest"]) == ("legal", first)
    (record,) = lorry("recover")["recovered"]
    assert (record["name"], record["digest"]) == (f"recovered-{second[7:19]}", second)
    assert lorry("recover", "--list") == {"unclaimed": []}
    assert len(lorry("list")["adapters"]) == 2


def test_one_that_does_not_fit_stops_no_other(
    lorry, peft_adapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = lost(tmp_path / "home", peft_adapter("llama", "plain"))
    other = tmp_path / "other"
    shutil.copytree(peft_adapter("llama", "plain", seed=5), other)
    tensors = load_file(other / "adapter_model.safetensors")
    first = min(tensors)
    tensors[first] = tensors[first][:, :-1].contiguous()
    save_file(tensors, other / "adapter_model.safetensors")
    bad = lost(tmp_path / "home", other)
    assert main(["adapters", "recover", "--json"]) == 1
    captured = capsys.readouterr()
    assert [one["digest"] for one in json.loads(captured.out)["recovered"]] == [good]
    assert captured.err.startswith(f"error: {bad}: ") and first in captured.err
    assert [one["digest"] for one in lorry("recover", "--list")["unclaimed"]] == [bad]
