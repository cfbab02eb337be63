"""A hub's model: what is asked for, what is left there, and that it is offline afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.patience import PATIENCE

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_right"

_CLIENT = """
import json, sys
from pathlib import Path
from lorry.errors import ModelError
from lorry.model import base_source

for line in sys.stdin:
    call = json.loads(line)
    try:
        found = base_source.fetch(call.pop("model"), Path(call.pop("home")), **call,
                             say=lambda line: None, meter=lambda *news: None)
    except ModelError as error:
        answer = "refused: " + error.message
    else:
        answer = f"{found.name} {found.revision} {found.folder}"
    print(answer, flush=True)
"""


class Hub:
    """The calls of the hub's protocol that a snapshot needs, for one gated repository."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, folder, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, folder, body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, folder: Path, *, body: bool) -> None:
        path = handler.path.partition("?")[0]
        self.asked.append(path)
        headers = {"X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
        names = [str(item.relative_to(folder)) for item in folder.rglob("*") if item.is_file()]
        status, data = 404, b"{}"
        if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 403
            headers["X-Error-Code"] = "GatedRepo"
        elif path == f"/api/models/org/tiny/tree/{COMMIT}":
            status = 200
            data = json.dumps(
                [
                    {
                        "type": "file",
                        "path": name,
                        "size": (folder / name).stat().st_size,
                        "oid": hashlib.sha1((folder / name).read_bytes()).hexdigest(),
                    }
                    for name in names
                ]
            ).encode()
        elif path.startswith("/api/models/org/tiny/revision/"):
            if path.rpartition("/")[2] in ("main", "v1", COMMIT):
                status = 200
                data = json.dumps(
                    {
                        "id": "org/tiny",
                        "sha": COMMIT,
                        "siblings": [{"rfilename": name} for name in names],
                    }
                ).encode()
            else:
                headers["X-Error-Code"] = "RevisionNotFound"
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            status, data = 200, (folder / path.split(f"{COMMIT}/")[1]).read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        else:
            headers["X-Error-Code"] = "RepoNotFound"
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if body:
            handler.wfile.write(data)


@pytest.fixture
def hub(tiny_model: Callable[[str], Path], tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    for item in tiny_model("llama").iterdir():
        (folder / item.name).write_bytes(item.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"x")
    hub = Hub(folder)
    yield hub
    hub.server.shutdown()


class Client:
    """Fetches in a process of its own: the hub's address is read when its client is imported."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self._home = home
        environ = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1"}
        environ |= {f"HF_HUB_{what}_TIMEOUT": f"{PATIENCE:.0f}" for what in ("ETAG", "DOWNLOAD")}
        environ |= {"PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environ,
        )

    def fetch(self, model: str, *, home: str = "home", **more: str) -> str:
        call = {"model": model, "home": str(self._home / home), "token": TOKEN, **more}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Iterator[Client]:
    client = Client(hub, tmp_path)
    yield client
    client.close()


def test_a_hub_model(hub: Hub, client: Client, tmp_path: Path) -> None:
    answer = client.fetch("org/tiny", revision="v1")
    assert answer.startswith(f"tiny {COMMIT} "), (answer, hub.asked)
    folder = Path(answer.split()[2])
    assert folder.is_relative_to(tmp_path / "home" / "models")
    fetched = {str(item.relative_to(folder)) for item in folder.rglob("*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not {"pytorch_model.bin", "modeling_own.py", "onnx"} & fetched
    assert not any(path.endswith((".bin", ".py")) for path in hub.asked)

    assert "is gated: " in client.fetch("org/tiny", home="other", token="hf_wrong")
    assert "org/tiny has no revision v9" in client.fetch("org/tiny", revision="v9")
    assert "org/none is no alias" in client.fetch("org/none")

    hub.server.shutdown()
    hub.server.server_close()
    assert client.fetch("org/tiny", revision="v1") == answer
    assert "the hub cannot be reached" in client.fetch("org/tiny", home="other")
