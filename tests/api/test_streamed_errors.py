"""A stream that breaks off is an error in the clients that people have, and not its end.

The hub's client is here for real; what LoRAX's and TGI's do with an event is written down from
their source: one that is no token is an error, whose fields they read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import OverloadedError, ValidationError

from api.live import Live, serve
from lorry.settings import Settings
from support.patience import ENDLESS, PATIENCE

PROMPT = "How do I cook rice?"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are offline, which to the hub's client means localhost, too."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_a_stream_that_breaks_off_raises(
    tmp_path: Path, settings_for: Callable[..., Settings], long_model: Path
) -> None:
    settings = settings_for(tmp_path / "home", model=str(long_model), kv_cache_memory=256 << 20)
    with serve(settings) as own:
        hub = InferenceClient(own.url, token="none")
        stream = iter(hub.text_generation(PROMPT, max_new_tokens=ENDLESS, stream=True))
        next(stream)
        loop = own.server.client._loop
        assert loop is not None
        asyncio.run_coroutine_threadsafe(own.server.client.drain(0), loop).result(PATIENCE)
        with pytest.raises(OverloadedError, match="shut down"):
            for _ in stream:
                pass


def test_an_error_before_the_first_event_has_its_status_and_its_kind(live: Live) -> None:
    """All of these clients look at the status of a stream before they read it."""
    hub = InferenceClient(live.url, token="none")
    with pytest.raises(ValidationError, match="temperature"):
        list(hub.text_generation(PROMPT, temperature=-1, stream=True))
    body = {"inputs": PROMPT, "parameters": {"temperature": -1}, "stream": True}
    for path in ("/", "/generate", "/generate_stream"):
        answer = live.http.post(path, json=body)
        assert answer.status_code == 422
        error = json.loads(answer.text)
        assert isinstance(error["error"], str) and error["error_type"] == "validation"
