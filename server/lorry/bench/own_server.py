"""A Lorry server of our own to measure: a process, a free port, a home that goes with it."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from lorry.errors import LorryError

READY_SECONDS = 600
STOP_SECONDS = 60
_URL = re.compile(r"^lorry serves .* on (http://\S+)$", re.MULTILINE)


class DidNotStart(LorryError):
    """The server ended, or was not ready in time; the message has its last words."""


@dataclass(frozen=True, slots=True)
class OwnServer:
    url: str
    pid: int


@contextmanager
def running(
    model: Path, name: str, flags: Sequence[str], *, waiting: Callable[[], None]
) -> Iterator[OwnServer]:
    """A server of the folder `model`, called `name`, with `flags` of `lorry serve`.

    `waiting` is called now and then until it is ready. Raises DidNotStart.
    """
    with tempfile.TemporaryDirectory(prefix="lorry-bench-") as scratch:
        log = Path(scratch) / "server.log"
        command = [sys.executable, "-m", "lorry", "serve", str(model), "--served-model-name", name]
        command += ["--home", f"{scratch}/home", "--port", "0", "--no-samples", *flags]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield OwnServer(_ready(process, log, waiting), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(process: subprocess.Popen[bytes], log: Path, waiting: Callable[[], None]) -> str:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if process.poll() is not None:
            words = " ".join(text.split()[-60:])
            raise DidNotStart(f"the server ended with status {process.returncode}: {words}")
        found = _URL.search(text)
        if found is not None:
            url = found.group(1)
            try:
                if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success:
                    return url
            except httpx.TransportError:
                pass
        waiting()
        time.sleep(0.2)
    raise DidNotStart(f"the server was not ready within {READY_SECONDS} s")
