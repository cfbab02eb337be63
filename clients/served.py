"""The server that the clients talk to: `lorry serve`, with what a reader of the README has."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorry.model.store import models_folder
from lorry.settings import Settings
from support import peft_adapters, server, tiny
from support.patience import LONG

BASE = "smollm2-135m"


@contextmanager
def default_base() -> Iterator[server.Server]:
    """The default base with the samples, in a home of its own.

    The models are those of the user's own home: where they have the base it is not fetched again.
    """
    with tempfile.TemporaryDirectory(prefix="lorry-clients-") as scratch:
        home = Path(scratch) / "home"
        models = models_folder(Settings().home)
        models.mkdir(parents=True, exist_ok=True)
        home.mkdir()
        models_folder(home).symlink_to(models)
        flags = ["--quantize", "auto", "--dtype", "auto", "--kv-cache-memory", "1GiB", "--samples"]
        with server.running(Path(BASE), home, *flags) as running:
            yield running


@contextmanager
def tiny_base() -> Iterator[server.Server]:
    """A tiny random Llama under the default base's name, with an adapter called `pirate`: needs
    no network, and keeps to grammars as any base does."""
    with tempfile.TemporaryDirectory(prefix="lorry-clients-") as scratch:
        folder = Path(scratch)
        model = tiny.save_model("llama", folder / "model", max_positions=LONG)
        adapter = folder / "pirate"
        peft_adapters.save_adapter("llama", model, "plain", adapter, seed=1)
        archive = peft_adapters.pack(adapter, folder / "pirate.zip")
        flags = ["--served-model-name", BASE, "--kv-cache-memory", "64MiB"]
        with server.running(model, folder / "home", *flags) as running:
            answer = running.upload("pirate", archive)
            assert answer.status_code == 201, answer.text
            yield running
