"""Builds the compiled step when Lorry is installed, where a C compiler is at hand.

Without one the installation goes on: the server then runs on PyTorch's operations and
says so. Called by hatchling; `python server/build_compiled.py` builds into the checkout.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMPILED = HERE / "lorry" / "model" / "compiled"


def build() -> list[Path]:
    """The shared libraries made; none where there is no compiler or no x86."""
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or _compilers()[:1]
    except ValueError as error:
        sys.stderr.write(f"lorry: CC={os.environ['CC']}: {error}\n")
        return []
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return []
    if not compiler:
        sys.stderr.write("lorry: no C compiler: steps will run on PyTorch's operations\n")
        return []
    recipe = _recipe()
    made = []
    for instructions in recipe.INSTRUCTIONS:
        target = COMPILED / recipe.file_name(instructions)
        fresh = target.with_suffix(f".{os.getpid()}.tmp")
        problem = _run(recipe.command(compiler, instructions, fresh))
        if problem:
            sys.stderr.write(f"lorry: the step for {instructions} was not built:\n{problem}\n")
            fresh.unlink(missing_ok=True)
            continue
        # A server may have the old one open: replaced, never written over.
        fresh.replace(target)
        made.append(target)
    return made


def _recipe() -> Any:
    """The module, by its path: Lorry and torch may not be installed yet."""
    spec = importlib.util.spec_from_file_location("recipe", COMPILED / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compilers() -> list[str]:
    found = map(shutil.which, ("cc", "gcc", "clang"))
    return [path for path in found if path]


def _run(command: list[str]) -> str | None:
    """What went wrong; None where nothing did."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if done.returncode:
        return done.stderr.strip() or f"{command[0]} ended with {done.returncode}"
    # /bin/true compiles everything.
    return None if Path(command[command.index("-o") + 1]).is_file() else "nothing came out"


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
