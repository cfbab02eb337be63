"""Builds the compiled step when Lorry is installed, where a C compiler is at hand.

Without one the installation goes on: the server then runs on PyTorch's operations and
says so. Called by hatchling; `python server/build_native.py` builds into the checkout.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NATIVE = HERE / "lorry" / "model" / "native"


def flags() -> dict[str, str]:
    """`library.FLAGS`, read and not imported: torch may not be installed yet."""
    source = (NATIVE / "library.py").read_text("utf-8")
    table = source[source.index("FLAGS = {") : source.index("}", source.index("FLAGS = {"))]
    return dict(re.findall(r'"(\w+)": "([^"]+)"', table))


def build() -> list[Path]:
    """The shared libraries made; none where there is no compiler or no x86."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or platform.machine() != "x86_64" or not compiler:
        return []
    made = []
    for instructions, extra in flags().items():
        target = NATIVE / f"step_{instructions}.so"
        fresh = target.with_suffix(f".{os.getpid()}.tmp")
        command = [compiler, "-std=gnu11", "-O3", "-Wno-psabi", "-fPIC", "-shared", "-pthread"]
        # vectors.h says why: a row's bits must not depend on what a loop was unrolled into.
        command += ["-ffp-contract=off"]
        command += ["-mfma", *extra.split(), str(NATIVE / "step.c"), "-o", str(fresh), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(f"lorry: step for {instructions} was not built:\n{done.stderr}\n")
            fresh.unlink(missing_ok=True)
            continue
        # A server may have the old one open: replaced, never written over.
        fresh.replace(target)
        made.append(target)
    return made


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:
    # Run as a script.
    pass
else:

    class NativeHook(BuildHookInterface):  # type: ignore[type-arg, misc]
        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            made = build()
            if made:
                platform_tag = re.sub(r"[-.]", "_", sysconfig.get_platform())
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{platform_tag}"
                build_data["artifacts"] += [str(path.relative_to(HERE.parent)) for path in made]


if __name__ == "__main__":
    for path in build():
        sys.stdout.write(f"{path}\n")
