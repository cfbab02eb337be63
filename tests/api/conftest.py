"""The server that most tests share: a tiny Llama with two adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.fetching import authority, cdn, fetching, good, origin
from api.live import BASE, MAX_UPLOAD, Live, serve, serve_on_ray
from lorry.settings import Settings

__all__ = ("authority", "cdn", "fetching", "good", "origin")


@pytest.fixture(scope="session")
def settings_for(
    tiny_model: Callable[[str], Path], pytestconfig: pytest.Config
) -> Callable[..., Settings]:
    """`settings_for(home, **fields)`: the tiny Llama in float32 on the CPU."""
    option = pytestconfig.getoption("engine_process")

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
            "engine_process": "on" if option == "on" else "off",
        }
        return Settings(**{**given, **fields})

    return make


@pytest.fixture(scope="session")
def live(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    archives: Callable[[int], Path],
    peft_adapter: Callable[..., Path],
    pytestconfig: pytest.Config,
) -> Iterator[Live]:
    """The server that most tests share, with `pirate` and `legal` registered. Tests that
    change adapters bring their own."""
    home = tmp_path_factory.mktemp("home")
    root = peft_adapter("llama", "plain", seed=1).parent
    start = serve_on_ray if pytestconfig.getoption("engine_process") == "ray" else serve
    with start(settings_for(home, adapter_roots=(root,))) as one:
        for seed, name in ((1, "pirate"), (2, "legal")):
            answer = one.upload(name, archives(seed))
            assert answer.status_code == 201, answer.text
        yield one


@pytest.fixture(scope="package")
def long(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    archives: Callable[[int], Path],
    long_model: Path,
) -> Iterator[Live]:
    """A server whose answers need not end (`ENDLESS`), with `pirate` registered."""
    home = tmp_path_factory.mktemp("home")
    with serve(settings_for(home, model=str(long_model), kv_cache_memory=64 << 20)) as one:
        assert one.upload("pirate", archives(1)).status_code == 201
        yield one


@pytest.fixture(scope="package")
def own(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    peft_adapter: Callable[..., Path],
) -> Iterator[Live]:
    """A server of their own for those who change adapters: others count on theirs."""
    root = peft_adapter("llama", "plain", seed=1).parent
    home = tmp_path_factory.mktemp("home")
    with serve(settings_for(home, adapter_roots=(root,), max_upload=MAX_UPLOAD)) as one:
        yield one


@pytest.fixture
def fresh(own: Live) -> Live:
    """No adapters at first, nothing on its way at the end."""
    for record in own.http.get("/adapters").json()["adapters"]:
        assert own.http.delete(f"/adapters/{record['name']}").status_code == 204
    return own
