"""A real server in this process: a tiny Llama, three adapters, a socket. Nothing is mocked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from lorry.bootstrap import Server, assemble
from lorry.settings import Settings

BASE = "tiny"


@dataclass(eq=False)
class Live:
    """A running server and a client for it."""

    server: Server
    url: str
    http: httpx.Client

    def generate(self, inputs: str = "Ahoy there", **body: Any) -> dict[str, Any]:
        """The answer of `/generate` with details; keyword `parameters` are merged."""
        parameters = {"max_new_tokens": 6, "details": True, **body.pop("parameters", {})}
        answer = self.http.post(
            "/generate", json={"inputs": inputs, "parameters": parameters, **body}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def upload(self, name: str, archive: Path, **fields: str) -> httpx.Response:
        with archive.open("rb") as file:
            return self.http.post(
                "/adapters", data={"name": name, **fields}, files={"file": (archive.name, file)}
            )


def serve(settings: Settings) -> Iterator[Live]:
    server = assemble(settings, lambda line: None, on_broken=lambda: None)
    server.engine.start()
    config = uvicorn.Config(server.app, host="127.0.0.1", port=0, log_level="warning")
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        assert thread.is_alive()
        thread.join(0.01)
    port = web.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    with httpx.Client(base_url=url, timeout=60, headers=headers) as client:
        yield Live(server, url, client)
    web.should_exit = True
    thread.join()
    server.close()


@pytest.fixture(scope="session")
def settings_for(tiny_model: Callable[[str], Path]) -> Callable[..., Settings]:
    """`settings_for(home, **fields)`: the tiny Llama in float32 on the CPU."""

    def make(home: Path, **fields: Any) -> Settings:
        given: dict[str, Any] = {
            "model": str(tiny_model("llama")),
            "served_model_name": BASE,
            "home": home,
            "device": "cpu",
            "dtype": "float32",
            "quantize": "none",
            "kv_cache_memory": 4 << 20,
            "samples": False,
            "max_loras": 4,
            "host_cache_memory": 64 << 20,
        }
        return Settings(**{**given, **fields})

    return make


@pytest.fixture(scope="session")
def archives(
    peft_adapter: Callable[..., Path], zip_of: Callable[..., Path]
) -> Callable[[int], Path]:
    """`archives(seed)`: a zip of an adapter for the tiny Llama."""
    made: dict[int, Path] = {}

    def archive(seed: int) -> Path:
        if seed not in made:
            made[seed] = zip_of(peft_adapter("llama", "plain", seed=seed))
        return made[seed]

    return archive


@pytest.fixture(scope="session")
def live(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    archives: Callable[[int], Path],
    peft_adapter: Callable[..., Path],
) -> Iterator[Live]:
    """The server that most tests share, with `pirate` and `legal` registered. Tests that
    change adapters bring their own."""
    home = tmp_path_factory.mktemp("home")
    root = peft_adapter("llama", "plain", seed=1).parent
    for one in serve(settings_for(home, adapter_roots=(root,))):
        for seed, name in ((1, "pirate"), (2, "legal")):
            answer = one.upload(name, archives(seed))
            assert answer.status_code == 201, answer.text
        yield one
