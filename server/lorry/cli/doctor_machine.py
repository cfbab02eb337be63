"""What `lorry doctor` finds of the machine: no check here imports torch."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import httpx
import psutil

from lorry.cache_memory import for_host_cache, for_kv_cache
from lorry.cli.finding import Check, Finding, note, ok, problem
from lorry.hostname import is_loopback
from lorry.option import format_size
from lorry.settings import Settings
from lorry_adapters.errors import AdapterError
from lorry_adapters.lora import memory_limit

TESTED_PYTHONS: Final = ((3, 11), (3, 13))

ROOM_FOR_A_MODEL: Final = 2 << 30
"""Bytes of disk: the default model, its download and a few adapters, with air."""

INSTRUCTION_SETS: Final = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "i8mm"),
)
"""Flags in /proc/cpuinfo by which torch's and bitsandbytes' CPU kernels are chosen."""

WRITES, WRITTEN = 5, 4 << 20
"""How often something is written to the home's disk, and bytes each time."""

SLOW_WRITE: Final = 0.25
"""Seconds for WRITTEN bytes. A change of an adapter or a key waits for the disk several times."""

FILES: Final = 1024
"""Each connection takes an open file, and so do each adapter that is read and each library."""

EXTRAS: Final = {"postgres": "psycopg", "s3": "s3fs", "gs": "gcsfs"}
"""Lorry's optional dependencies, and the module of each."""


def _python(settings: Settings) -> Iterator[Finding]:
    first, last = TESTED_PYTHONS
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if first <= sys.version_info[:2] <= last:
        yield ok("python", text)
        return
    tested = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
    yield note("python", f"{text}; tested are {tested}", f"install Lorry with Python {tested}")


def _cpu(settings: Settings) -> Iterator[Finding]:
    physical, logical = psutil.cpu_count(logical=False), psutil.cpu_count()
    model, flags = _cpuinfo()
    found = [name for name in INSTRUCTION_SETS if name in flags]
    text = f"{model or platform.processor() or platform.machine()}, "
    text += f"{physical or logical} cores" + (f", {logical} threads" if physical else "")
    text += f"; {', '.join(found)}" if found else ""
    if "avx2" in flags and "avx512f" not in flags:
        yield note(
            "cpu",
            f"{text}; no AVX-512",
            "leave --kernels on auto: on PyTorch's operations int8 and 4-bit bases are slow here",
        )
    else:
        yield ok("cpu", text)


def _cpuinfo() -> tuple[str, frozenset[str]]:
    """Model name and feature flags; empty where the system has no /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return "", frozenset()
    lines = (line.partition(":") for line in path.read_text().splitlines())
    pairs = {key.strip(): value.strip() for key, _, value in lines}
    flags = pairs.get("flags") or pairs.get("Features") or ""
    return pairs.get("model name", ""), frozenset(flags.split())


def _memory(settings: Settings) -> Iterator[Finding]:
    free, total = memory_limit.free(), memory_limit.total()
    caches = for_kv_cache(settings, free) + for_host_cache(settings, free)
    text = f"{format_size(free)} free of {format_size(total)}"
    if free < caches:
        yield note(
            "memory",
            f"{text}; the KV cache and the host cache may grow to {format_size(caches)} beside the "
            "base",
            "lower --kv-cache-memory or --host-cache-memory",
        )
    else:
        yield ok("memory", text)
    size = _bytes_of_base(settings)
    # A weight of a file has 16 bits nearly always, and one in nf4 has a little over 4.
    if size is not None and free < size // 4:
        yield problem(
            "memory",
            f"the base has {format_size(size)} of files, and takes about "
            f"{format_size(size // 4)} in nf4",
            "serve a smaller base, end other programs, or give the container more memory",
        )


def _bytes_of_base(settings: Settings) -> int | None:
    """Of the weights' files, if the base is in a folder of this machine."""
    folder = Path(settings.model).expanduser()
    if not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _home(settings: Settings) -> Iterator[Finding]:
    # The nearest folder that exists is where the rest would be made.
    place = settings.home
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield problem(
            "disk",
            f"{settings.home} cannot be written",
            "choose another --home, or give this user the folder",
        )
        return
    free = shutil.disk_usage(place).free
    text = f"{format_size(free)} free for {settings.home}"
    if free < ROOM_FOR_A_MODEL:
        yield problem(
            "disk",
            f"{text}; a model and its adapters want {format_size(ROOM_FOR_A_MODEL)}",
            "free some (docs/operations.md says what may go), or choose another --home",
        )
        return
    try:
        seconds = _write_time(place)
    except OSError as error:
        yield problem("disk", f"{text}, but a write failed: {error}", "choose another --home")
        return
    yield _disk_speed(text, seconds)


def _write_time(place: Path) -> float:
    """Return the seconds that it takes to write WRITTEN bytes, so that they are on the disk. The
    fastest of several counts."""
    data, times = os.urandom(WRITTEN), []
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        for _ in range(WRITES):
            start = time.perf_counter()
            file.seek(0)
            file.write(data)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return min(times)


def _disk_speed(text: str, seconds: float) -> Finding:
    rate = f"{WRITTEN / seconds / 1e6:.0f} MB/s in writes that wait for the disk"
    if seconds < SLOW_WRITE:
        return ok("disk", f"{text}; {rate}")
    return note(
        "disk",
        f"{text}; only {rate}",
        "put --home on a local disk: uploads, changes and the first start of a base wait for it",
    )


def _port(settings: Settings) -> Iterator[Finding]:
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if _is_lorry(settings):
            yield ok("port", f"{where}: a Lorry server is running there")
        else:
            yield problem(
                "port",
                f"{where}: {error.strerror or error}",
                "choose another --port or --host, or end what listens there "
                f"(ss -ltnp 'sport = :{settings.port}')",
            )
        return
    yield ok("port", f"{where} is free")


def _is_lorry(settings: Settings) -> bool:
    """Does what listens on the port answer as ours?"""
    key = settings.api_key
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(
            f"http://{settings.host}:{settings.port}/info",
            headers=headers,
            timeout=2,
            trust_env=False,
        )
        body = answer.json()
    except (httpx.HTTPError, ValueError):
        return False
    return isinstance(body, dict) and "max_lora_rank" in body


def _keys(settings: Settings) -> Iterator[Finding]:
    if settings.api_key is not None:
        yield ok("keys", "LORRY_API_KEY is asked for")
        return
    from lorry.access.access_database import has_keys

    try:
        there = has_keys(settings.home, settings.catalog)
    except AdapterError as error:
        yield problem("keys", error.message, "see docs/operations.md")
        return
    if there:
        yield ok("keys", "the server has keys of its own, and asks for one")
    elif is_loopback(settings.host):
        yield ok("keys", f"none, and only this machine reaches {settings.host}")
    elif settings.open_to_anyone:
        yield note(
            "keys",
            f"none: whoever reaches {settings.host} may do everything",
            "set LORRY_API_KEY, or make a key with `lorry keys create NAME --scope admin`",
        )
    else:
        yield problem(
            "keys",
            f"none, and other machines reach {settings.host}",
            "set LORRY_API_KEY; --open-to-anyone serves without a key",
        )


def _clock(settings: Settings) -> Iterator[Finding]:
    now, installed = time.time(), Path(__file__).stat().st_mtime
    shown = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
    if now < installed - 86400:
        yield note(
            "clock",
            f"it says {shown}, which is before Lorry was installed",
            "set it (timedatectl set-ntp true): certificates are refused, and the audit is wrong",
        )
    else:
        yield ok("clock", shown)


def _files(settings: Settings) -> Iterator[Finding]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < FILES:
        yield note(
            "files",
            f"at most {limit} open files, and each connection takes one",
            "raise it: ulimit -n 65536, or LimitNOFILE= of a service",
        )
    else:
        yield ok("files", f"at most {limit} open files" if limit > 0 else "no limit")


def _extras(settings: Settings) -> Iterator[Finding]:
    there = [name for name, module in EXTRAS.items() if find_spec(module) is not None]
    wanted = {"postgres"} if settings.catalog is not None else set()
    wanted |= {name for name in ("s3", "gs") if (settings.store or "").startswith(f"{name}://")}
    for name in sorted(wanted - set(there)):
        yield problem(
            "extras", f"the settings need lorry[{name}]", f"run: pip install 'lorry[{name}]'"
        )
    if wanted <= set(there):
        missing = [name for name in EXTRAS if name not in there]
        text = f"installed: {', '.join(there) or 'none'}"
        yield ok("extras", text + (f"; not needed here: {', '.join(missing)}" if missing else ""))


CHECKS: tuple[Check, ...] = (
    _python,
    _cpu,
    _memory,
    _home,
    _port,
    _keys,
    _clock,
    _files,
    _extras,
)
