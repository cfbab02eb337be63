"""Loading a base takes little more memory than the base itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lorry.model.base_loader import load
from lorry.model.paths import replacer
from lorry.settings import Settings
from support.compiled import require_compiled_step
from support.gguf_family import Kind, write_family
from support.tokenizer import build_tokenizer

VOCAB, WIDTH = 40_000, 1024
TABLE = 2 * VOCAB * WIDTH
"""Bytes in 16 bits; the base in 4 bits is twice that."""

LOAD = """
import sys, threading, time
from pathlib import Path
from lorry.model.quick_import import import_libraries
import_libraries()
import torch
from lorry.model.base_loader import load
from lorry.model.paths import replacer
from lorry.settings import Settings
folder, home, quantize = sys.argv[1:]

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10

peak, done = [0], []
def watch():
    while not done:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

torch.randn(64, 64) @ torch.randn(64, 64)
start = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
settings = Settings(model=folder, home=Path(home), device="cpu", quantize=quantize)
loaded = load(settings, lambda line: None, replacer=replacer("auto", Path(home)))
done.append(True)
watcher.join()
print(peak[0] - start, sum(loaded.memory.values()))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_compiled_step()
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=VOCAB,
        tie_word_embeddings=True,
        max_position_embeddings=256,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    build_tokenizer(add_bos=False).save_pretrained(folder)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports anonymous memory in /proc")
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_the_base_is_there_once(quantize: str, base: Path, tmp_path: Path) -> None:
    for start in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(base), str(tmp_path), quantize],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peak, size = map(int, done.stdout.split())
        assert size < 2.9 * TABLE
        # The tokenizer, modules and threads are no part of the base.
        assert peak < 1.2 * size + (48 << 20), (start, peak / size, peak)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports anonymous memory in /proc")
def test_a_gguf_file_is_never_in_memory_as_numbers(tmp_path: Path) -> None:
    """Neither while it is converted nor while its base is loaded."""
    require_compiled_step()
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2048, "num_hidden_layers": 16}
    write_family(tmp_path / "wide.gguf", "tied llama", Kind.Q4_K, **sizes)
    for start in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(tmp_path / "wide.gguf"), str(tmp_path), "nf4"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peak, size = map(int, done.stdout.split())
        assert 70 << 20 < size < 100 << 20
        # All of it in fp32 is 560 MiB.
        assert peak < 1.2 * size + (64 << 20), (start, peak / size, peak)


def test_it_says_how_far_it_is(base: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    settings = Settings(model=str(base), home=tmp_path, device="cpu", quantize="nf4")
    load(
        settings,
        lambda line: None,
        meter=lambda *news: told.append(news),
        replacer=replacer("auto", None),
    )
    assert len(told) == 8 * 7 and {what for what, _, _ in told} == {"quantizing"}
    done = [bytes_ for _, bytes_, _ in told]
    assert done == sorted(done) and done[-1] == told[-1][2] > 0
