"""Where and with what a figure was measured. Figures without it are worth nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("lorry", "torch", "transformers", "bitsandbytes", "peft", "numpy")


@dataclass(frozen=True, slots=True)
class Machine:
    when: str
    cpu: str
    cores: int
    instructions: tuple[str, ...]
    memory: int
    """Bytes."""
    gpus: tuple[str, ...]
    system: str
    python: str
    packages: dict[str, str]
    commit: str | None
    """Of the checkout that the package runs from; `-dirty` where files differ from it."""
    busy: float | None
    """Load average of the last minute, at the start: above a few tenths, others took part."""

    @property
    def one_line(self) -> str:
        parts = [f"{self.cores} cores of {self.cpu}", *self.gpus, self.system]
        if self.commit:
            parts.append(f"commit {self.commit}")
        return ", ".join(parts)


def look() -> Machine:
    model, flags = _cpu()
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "i8mm")
    return Machine(
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=model,
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 0,
        instructions=tuple(name for name in known if name in flags),
        memory=psutil.virtual_memory().total,
        gpus=_gpus(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := _version(name)) is not None},
        commit=_commit(),
        busy=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def resident_bytes(pid: int) -> int:
    """Memory that a process and its children hold at this moment."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(int(member.memory_info().rss) for member in family)


def _cpu() -> tuple[str, frozenset[str]]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine(), frozenset()
    pairs = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in path.read_text().splitlines())
    }
    flags = pairs.get("flags") or pairs.get("Features") or ""
    return pairs.get("model name") or platform.machine(), frozenset(flags.split())


def _gpus() -> tuple[str, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return tuple(line.strip() for line in done.stdout.splitlines()) if not done.returncode else ()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """None outside a checkout, and where the package was installed into somebody else's."""
    git = shutil.which("git")
    if git is None:
        return None
    file = Path(__file__).resolve()

    def ask(*arguments: str) -> str:
        command = [git, "-C", str(file.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return "" if done.returncode else done.stdout.strip()

    if not ask("ls-files", "--error-unmatch", file.name):
        return None
    return ask("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or None
