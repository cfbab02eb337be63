"""A real server in its own process: `python -m lorry serve`, a free port, a home of its own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from support.patience import PATIENCE, client, wait_until

ROOT = Path(__file__).resolve().parents[2]
_SERVES = re.compile(r"\blorry serves .* on (http://[^\s\"]+)\"?[^\n]*\n")


@dataclass(eq=False)
class Server:
    """A running process, and what can be asked of it from outside."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    home: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = client(self.url)

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

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The process stands still meanwhile: what is sent to it has come, all of it, before it
        takes another step."""
        self.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", "the process to stand still")
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _state(self) -> str:
        """The letter that `ps` shows."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

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
    """A request of `/generate`: details, exactly `tokens` tokens. Nothing is taken from the prefix
    cache, so that the same request has the same answer to the last digit."""
    asked = {"max_new_tokens": tokens, "details": True, "ignore_eos_token": True}
    asked |= {"cache_prompt": False, **parameters}
    return {"inputs": inputs, "adapter": adapter, "parameters": asked}


def launch(
    model: Path,
    home: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    wrap: Sequence[str] = (),
) -> tuple[subprocess.Popen[bytes], Path]:
    """Starts it and waits for nothing: the process, and the file with what it says. Float32 on the
    CPU unless `flags` say otherwise.

    `wrap` is a command that the server's own is appended to (`unshare`, `prlimit`).
    """
    home.mkdir(parents=True, exist_ok=True)
    log = home.parent / f"{home.name}.{len(list(home.parent.glob('*.out')))}.out"
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
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environ), log


def start(model: Path, home: Path, *flags: str, **options: Any) -> Server:
    """Like `launch`, and waits until it is ready."""
    process, log = launch(model, home, *flags, **options)
    try:
        wait_until(lambda: process.poll() is not None or _ready(log), "the server to be ready")
    except AssertionError:
        process.kill()
        process.wait()
        command = shlex.join(map(str, process.args))  # type: ignore[arg-type]
        raise AssertionError(f"{command}\nnot ready:\n{_said(log)}") from None
    if process.returncode is not None:
        command = shlex.join(map(str, process.args))  # type: ignore[arg-type]
        raise AssertionError(f"{command}\nended with {process.returncode}:\n{_said(log)}")
    return Server(process, _ready(log), log, home)


def _said(log: Path) -> str:
    return log.read_text(errors="replace")


def _ready(log: Path) -> str:
    """The URL that the server says it serves on, or nothing yet."""
    found = _SERVES.search(_said(log))
    return found.group(1) if found else ""


@contextmanager
def running(model: Path, home: Path, *flags: str, **options: Any) -> Iterator[Server]:
    """A server for the length of a `with` block; it must end with status 0."""
    server = start(model, home, *flags, **options)
    try:
        yield server
    finally:
        status = server.stop()
    assert status == 0, f"exit status {status}:\n{server.tail()}"
