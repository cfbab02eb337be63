"""A real server in its own process: `python -m lorry serve`, a free port, a home of its own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120
STOP_SECONDS = 60
_URL = re.compile(r"http://[\w.\-\[\]:]+:\d+")


@dataclass(eq=False)
class Server:
    """A running process, and what can be asked of it from outside."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    home: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=120)

    @property
    def pid(self) -> int:
        return self.process.pid

    def generate(
        self, inputs: str, adapter: Any = None, *, tokens: int = 8, **parameters: Any
    ) -> dict[str, Any]:
        """The answer of `/generate` with details; greedy unless `parameters` say otherwise."""
        answer = self.client.post("/generate", json=body(inputs, adapter, tokens, **parameters))
        assert answer.status_code == 200, (answer.status_code, answer.text, self.tail())
        return answer.json()  # type: ignore[no-any-return]

    def upload(self, name: str, archive: Path, **fields: str) -> httpx.Response:
        with archive.open("rb") as file:
            return self.client.post(
                "/adapters", data={"name": name, **fields}, files={"file": (archive.name, file)}
            )

    def info(self) -> dict[str, Any]:
        return self.client.get("/info").json()  # type: ignore[no-any-return]

    def metrics(self) -> dict[str, float]:
        """Sum over labels of every sample's value, by sample name."""
        text = self.client.get("/metrics").text
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return values

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        return self.process.wait(seconds)

    def stop(self) -> int:
        """SIGTERM and wait; the exit status."""
        self.client.close()
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"no end after SIGTERM:\n{self.tail()}") from None


def body(inputs: str, adapter: Any = None, tokens: int = 8, **parameters: Any) -> dict[str, Any]:
    """A request of `/generate`: details, exactly `tokens` tokens."""
    asked = {"max_new_tokens": tokens, "details": True, "ignore_eos_token": True, **parameters}
    return {"inputs": inputs, "adapter": adapter, "parameters": asked}


def start(
    model: Path,
    home: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    wrap: Sequence[str] = (),
    log: Path | None = None,
) -> Server:
    """Starts it and waits until it is ready. Float32 on the CPU unless `flags` say otherwise.

    `wrap` is a command that the server's own is appended to (`unshare`, `prlimit`).
    """
    home.mkdir(parents=True, exist_ok=True)
    log = log or home.parent / f"{home.name}.{time.monotonic_ns()}.out"
    command = [*wrap, sys.executable, "-m", "lorry", "serve", str(model)]
    command += ["--home", str(home), "--port", "0", "--device", "cpu"]
    defaults = {"--quantize": "none", "--dtype": "float32", "--kv-cache-memory": "4MiB"}
    for flag, value in defaults.items():
        if flag not in flags:
            command += [flag, value]
    command += ["--no-samples", *flags]
    paths = [str(ROOT / "server"), str(ROOT / "adapters"), os.environ.get("PYTHONPATH", "")]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LORRY_")}
    environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    environ |= {"HF_HUB_OFFLINE": "1", **(env or {})}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environ)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if process.poll() is not None:
            raise AssertionError(f"{shlex.join(command)}\nended with {process.returncode}:\n{text}")
        for url in _URL.findall(text):
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    return Server(process, url, log, home)
            except httpx.TransportError:
                continue
        time.sleep(0.1)
    process.kill()
    process.wait()
    raise AssertionError(f"{shlex.join(command)}\nnot ready:\n{log.read_text(errors='replace')}")


@contextmanager
def running(model: Path, home: Path, *flags: str, **options: Any) -> Iterator[Server]:
    """A server for the length of a `with` block; it must end with status 0."""
    server = start(model, home, *flags, **options)
    try:
        yield server
    finally:
        status = server.stop()
    assert status == 0, f"exit status {status}:\n{server.tail()}"
