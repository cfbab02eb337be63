"""The imports of a server that starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

QUICK = """
import sys
from lorry.model.quick_import import import_libraries
import_libraries()
import torch
import lorry.bootstrap
from transformers import LlamaConfig, LlamaForCausalLM
"""

LEFT_OUT = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_a_server_does_not_use_is_not_imported() -> None:
    asked = f"print([name for name in {LEFT_OUT} if name in sys.modules])"
    assert run(f"{QUICK}{asked}") == "[]"
    assert run(f"{QUICK}import torch._dynamo\n{asked}") == str([*LEFT_OUT])


def test_a_model_answers_as_it_does_with_them() -> None:
    answer = """
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, vocab_size=50)).eval()
ids = torch.arange(20).view(2, 10)
with torch.inference_mode():
    print(model(ids).logits.double().sum().item())
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    print(model(ids, attention_mask=mask).logits.double().sum().item())
"""
    plain = "import torch\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
    assert run(QUICK + answer) == run(plain + answer)


def test_dynamo_is_there_for_whoever_wants_it() -> None:
    compiled = """
assert torch.compile.__module__ == "torch", torch.compile
assert torch.distributed.is_available()
print(torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(1)).item())
"""
    assert run(QUICK + compiled) == "2.0"
    asked = "torch._dynamo.config.suppress_errors\nprint(torch._dynamo.__file__ is not None)"
    assert run(QUICK + asked) == "True"


def test_what_the_stand_in_has_not_is_the_real_one_s() -> None:
    code = """
import sys, torch
from lorry.model import quick_import
with quick_import.without_dynamo():
    assert torch._dynamo.disable(len) is len and torch.compiler.disable()(len) is len
    assert "torch._inductor" not in sys.modules
    print(torch._dynamo.config.__name__, "torch._inductor" in sys.modules)
"""
    assert run(code) == "torch._dynamo.config True"


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_base_is_loaded_without_them(
    quantization: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    code = f"""
from pathlib import Path
from lorry.engine_core import load_core
from lorry.settings import Settings
load_core(Settings(model={str(tiny_model("llama"))!r}, home=Path({str(tmp_path)!r}),
    quantize={quantization!r}, device="cpu", kv_cache_memory=1 << 22), lambda line: None)
print([name for name in {LEFT_OUT} if name in sys.modules])
"""
    assert run(QUICK + code) == "[]"


def test_an_empty_model_is_what_it_is_with_sympy() -> None:
    described = """
with torch.device("meta"):
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2))
    sizes = torch.arange(4) / 3, torch.empty(2, 1).normal_() + torch.ones(3)
print([(name, one.shape, one.dtype, one.stride()) for name, one in model.state_dict().items()])
print([(one.shape, one.dtype, one.device) for one in (*sizes, model.model.rotary_emb.inv_freq)])
"""
    without = f"""
from lorry.model.quick_import import without_dynamo
with without_dynamo():
    exec({described!r})
assert "sympy" not in sys.modules
"""
    plain = "import torch\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
    assert run(QUICK + without) == run(plain + described)


def test_sympy_is_there_for_whoever_wants_it() -> None:
    code = """
from lorry.model.quick_import import without_dynamo
with without_dynamo():
    import sympy
    print(sympy.Basic.__module__, sympy.Symbol("x") + 1, sys.modules["sympy"] is sympy)
import sympy
print(sympy.Basic.__module__, sympy.Symbol("x") + 1)
"""
    mine, real = "lorry.model.quick_import x + 1 False", "sympy.core.basic x + 1"
    assert run(QUICK + code) == f"{mine}\n{real}"


def test_transformers_knows_all_of_its_models() -> None:
    """It reads their files once, and not again for the package of all models."""
    told = """
import transformers.models
from transformers.utils import import_utils
sound = import_utils._LazyModule("transformers.models", transformers.models.__file__,
    import_utils.define_import_structure(transformers.models.__file__))
for name in ("_modules", "_class_to_module", "_object_missing_backend"):
    assert getattr(sound, name) == getattr(transformers.models, name), name
assert sorted(sound.__all__) == sorted(transformers.models.__all__)
print(len(sound._class_to_module) > 1000)
"""
    assert run(f"{QUICK}import transformers\n{told}") == "True"
    counted = """
import builtins
seen, real = [], builtins.open
builtins.open = lambda path, *more, **named: seen.append(str(path)) or real(path, *more, **named)
from lorry.model.quick_import import import_libraries
import_libraries()
print(sum(path.endswith("modeling_llama.py") for path in seen))
"""
    assert run(counted) == "1"


def test_the_collector_waits_for_the_imports() -> None:
    code = """
import gc
from lorry.model.quick_import import collector_paused
before = gc.get_freeze_count()
with collector_paused():
    assert not gc.isenabled()
print(gc.isenabled(), gc.get_freeze_count() > before)
gc.disable()
with collector_paused():
    pass
print(gc.isenabled())
"""
    assert run(code) == "True True\nFalse"
