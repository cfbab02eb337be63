"""A real server under what is to stop it: everything is refused, others are answered meanwhile,
and its memory is what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.hostile import Watch, fire, shots
from support.patience import wait_until
from support.server import running

SENT = (
    "a pax header of 100,000 digits",
    "a sparse map of 900,000 numbers in a pax header",
    "128 MB of long names",
    "a zip of fields of 64 KiB",
    "a config of 300,000 lists",
    "a header of 5 million lists",
    "a header of 100,000 tensors",
    "a header of a million names",
    "values of 1e+38",
    "a form of 100,000 files",
    "8 million brackets",
    "2.5 million lists as inputs",
    "600,000 unknown fields",
    "600,000 unknown parameters",
    "4 million stop sequences",
    "a number of 8 million digits",
)
LONGEST = 50.0
"""Seconds. It took tenths of one; on the slowest machine it is still no hang."""

KEPT = 150 << 20


def test_it_goes_on(model: Path, tmp_path: Path, peft_adapter: Callable[..., Path]) -> None:
    every = {shot.name: shot for shot in shots(peft_adapter("llama", "plain", seed=2))}
    with running(model, tmp_path / "home") as server:
        expected = server.generate("Ahoy there")
        before = server.resident_bytes()
        with Watch(server) as watch:
            for name in SENT * 2:
                fired = fire(server, every[name], watch)
                assert fired.expected, fired
                assert fired.blocked < LONGEST, fired
        assert server.generate("Ahoy there") == expected
        wait_until(lambda: server.resident_bytes() <= before + KEPT, "memory to go back")
        assert server.client.get("/adapters").json() == {"adapters": []}
