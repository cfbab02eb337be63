"""The imports of a server that starts."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from lorry.model.quick_import import import_bitsandbytes
import_bitsandbytes()
import torch
assert torch.compile.__module__ == "torch", torch.compile
assert "bitsandbytes" in sys.modules
print("torch._inductor.lowering" in sys.modules)
"""


def test_bitsandbytes_is_imported_without_inductor() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
