"""One base behind a real server, and PEFT beside it: where the cells of the matrix are held
against each other."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from api.live import Live, serve
from lorry.core import Batch, RowResult
from lorry.engine.letters import Submit
from lorry.settings import Settings
from support import peft_made
from support.kind import PROMPT, Kind
from support.peft_adapters import pack
from support.peft_kinds import PLAIN
from support.peft_made import Made

TOKENS = 2
"""Drawn after the prompt: the second is a step of its own, over the cache of the first."""
Chosen = tuple[str, float] | None


class Bench:
    """A server on one base, the same base for PEFT, and a plain LoRA in both."""

    def __init__(self, live: Live, base: Any, family: str, home: Path) -> None:
        self.live = live
        self.base = base
        # A 4-bit base is packed by its first forward pass: what is built on later is not run.
        self._running = copy.deepcopy(base)
        self.family = family
        self.prompt = PROMPT
        self._home = home
        self._pool = ThreadPoolExecutor(16)
        self._numbers: dict[tuple[Any, ...], list[float]] = {}
        self.plain = self.make(PLAIN, seed=7)
        self.upload("plain", self.plain.folder).raise_for_status()
        self.ask(("plain", 1.0)).raise_for_status()  # it lies in a slot from now on

    def close(self) -> None:
        self._pool.shutdown()

    def make(self, kind: Kind, *, seed: int = 1) -> Made:
        folder = self._home / f"{kind.name}-{seed}".replace(" ", "_")
        return peft_made.make(kind, self.family, self.base, folder, seed=seed)

    def upload(self, name: str, folder: Path) -> httpx.Response:
        return self.live.upload(name, pack(folder, self._home / "upload.zip"))

    def remove(self, name: str) -> None:
        self.live.http.delete(f"/adapters/{name}").raise_for_status()

    def ask(self, chosen: Chosen) -> httpx.Response:
        adapter = chosen and {"name": chosen[0], "scale": chosen[1]}
        parameters = {
            "max_new_tokens": TOKENS,
            "details": True,
            "decoder_input_details": True,
            "ignore_eos_token": True,
        }
        body = {"inputs": self.prompt, "adapter": adapter, "parameters": parameters}
        return self.live.http.post("/generate", json=body)

    def ask_together(self, rows: Sequence[Chosen]) -> list[httpx.Response]:
        """All of `rows` in one batch, and nothing else in it. Their adapters have been asked
        before: a row whose adapter is still on its way would start a step later."""
        with _one_batch(self.live, len(rows)) as (sizes, go):

            def ask(chosen: Chosen) -> httpx.Response:
                try:
                    return self.ask(chosen)
                finally:
                    go.set()  # one that was refused will never be in a batch

            answers = list(self._pool.map(ask, rows))
        assert sizes and sizes[0] == len(rows), sizes
        return answers

    def error(self, answer: httpx.Response, made: Made | None, scale: float = 1.0) -> float:
        return max(self.errors(answer, made, scale))

    def errors(self, answer: httpx.Response, made: Made | None, scale: float = 1.0) -> list[float]:
        """The differences between the answer's logprobs, of the prompt and of what was drawn,
        and PEFT's for the same tokens."""
        assert answer.status_code == 200, answer.text[:300]
        details = answer.json()["details"]
        entries = details["prefill"] + details["tokens"]
        ids = tuple(entry["id"] for entry in entries)
        mine = [entry["logprob"] for entry in entries[1:]]
        theirs = self.expected(ids, made, scale)
        return [abs(a - b) for a, b in zip(mine, theirs, strict=True)]

    def expected(self, ids: tuple[int, ...], made: Made | None, scale: float = 1.0) -> list[float]:
        key = (ids, made and made.folder, scale)
        if key not in self._numbers:
            self._numbers[key] = (
                peft_made.prompt_logprobs(self._running, ids)
                if made is None
                else made.logprobs(ids, scale)
            )
        return self._numbers[key]


@contextmanager
def bench(model: Path, family: str, home: Path, base: Any = None, **fields: Any) -> Iterator[Bench]:
    """`base`: what PEFT builds on, where it is not the model as it lies there."""
    settings = Settings(
        **{
            "model": str(model),
            "home": home,
            "device": "cpu",
            "dtype": "float32",
            "quantize": "none",
            "kv_cache_memory": 2 << 20,
            "samples": False,
            "max_loras": 8,
            "max_model_len": 128,
            **fields,
        }
    )
    with serve(settings) as live:
        found = Bench(live, base or peft_made.load_base(model), family, home)
        try:
            yield found
        finally:
            found.close()


@contextmanager
def _one_batch(live: Live, count: int) -> Iterator[tuple[list[int], threading.Event]]:
    """The engine reads its letters only when all `count` requests have come, or when it is
    told to go, so that they start in one step; the list fills with the rows of each step."""
    engine = live.server.engine
    sizes: list[int] = []
    go = threading.Event()
    take, runner = engine.mailbox.take, engine.runner

    def submitted() -> int:
        return sum(isinstance(letter, Submit) for letter in engine.mailbox._letters)

    def patient() -> list[Any]:
        while submitted() < count and not go.wait(0.0005):
            pass
        return take()

    class Counting:
        def run(self, batch: Batch) -> list[RowResult]:
            sizes.append(len(batch.rows))
            return runner.run(batch)

    first = True

    def once() -> list[Any]:
        nonlocal first
        if not first:
            return take()
        found = patient()
        first = not found
        return found

    engine.mailbox.take = once  # type: ignore[method-assign]
    engine.runner = Counting()
    try:
        yield sizes, go
    finally:
        go.set()
        engine.mailbox.take = take  # type: ignore[method-assign]
        engine.runner = runner
