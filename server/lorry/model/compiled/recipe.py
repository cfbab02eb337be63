"""How the compiled step is built: what the build hook and the server must agree on.

Imports nothing of Lorry: the hook runs this file by its path, before anything is
installed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

HERE = Path(__file__).parent

AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512"

INSTRUCTIONS = {
    "amx": f"{AVX512} -mamx-tile -mamx-int8",
    "avx512": AVX512,
    "avxvnni": "-mavx2 -mavxvnni",
    "avx2": "-mavx2",
}
"""What the step is built for, best first, and the compiler's flags for each."""

# No fused multiply-adds but those that are written: vectors.h says why.
FLAGS = "-std=gnu11 -O3 -Wno-psabi -ffp-contract=off -mfma -mf16c -fPIC -shared -pthread"


def file_name(instructions: str) -> str:
    return f"step_{instructions}.so"


def sources() -> str:
    """A digest of everything that the libraries are made of. Each carries the one it was
    made from: an old one, run with new structures, would write wherever it likes."""
    digest = hashlib.sha256()
    for path in sorted([*HERE.glob("*.[ch]"), Path(__file__)]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def command(compiler: list[str], instructions: str, target: Path) -> list[str]:
    """What compiles the step for `instructions` to `target`."""
    flags = [*FLAGS.split(), *INSTRUCTIONS[instructions].split()]
    stamp = f'-DLORRY_SOURCES="{sources()}"'
    return [*compiler, *flags, stamp, str(HERE / "step.c"), "-o", str(target), "-lm"]
