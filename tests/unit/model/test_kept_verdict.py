"""The second start of a base believes the first one's checks, where nothing has changed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from lorry.engine_core import EngineCore, load_core
from lorry.model import kept_verdict, paths, selfcheck, trial
from lorry.model.compiled import library
from lorry.model.compiled.description import ModelDescription
from lorry.model.compiled.suited import suited
from lorry.model.paths import first_pass
from lorry.settings import Settings
from support.compiled import require_compiled_step
from support.executor_driver import load_tiny
from support.tiny import save_model

TINY = {"kv_cache_memory": 1 << 20, "max_num_seqs": 4, "max_num_batched_tokens": 128}


@pytest.fixture(autouse=True, scope="module")
def _built() -> None:
    require_compiled_step()


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a start did of what it may leave out."""
    done: list[str] = []
    on_copy = selfcheck._on_copy

    def survey(*arguments: Any) -> ModelDescription:
        done.append("survey")
        return suited(*arguments)

    def compare(*arguments: Any) -> str | None:
        done.append("copy")
        return on_copy(*arguments)

    monkeypatch.setattr(paths, "suited", survey)
    monkeypatch.setattr(selfcheck, "_on_copy", compare)
    return done


EVERYTHING = ["survey", "copy", "copy"]


def start(folder: Path, home: Path, said: list[str] | None = None, **more: Any) -> EngineCore:
    settings = Settings(
        model=str(folder),
        home=home,
        device="cpu",
        dtype="float32",
        quantize="nf4",
        adapter_memory=64 << 20,  # the usual limit follows the free memory
        **{**TINY, **more},
    )
    core = load_core(settings, (said if said is not None else []).append)
    core.close()
    return core


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gptj"])
def test_the_second_start_looks_no_more(
    family: str, looked: list[str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    lines: list[list[str]] = [[], []]
    first = start(tiny_model(family), tmp_path, lines[0], max_model_len=64)
    assert looked == EVERYTHING
    looked.clear()
    second = start(tiny_model(family), tmp_path, lines[1], max_model_len=64)
    assert looked == []
    assert first.base == second.base and second.executor.paths.kernels == "compiled"
    assert lines[1] == [line for line in lines[0] if not line.startswith("kept the packed base")]


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], dict[str, Any]]] = {
    "length": lambda patch: {"max_model_len": 40},
    "settings": lambda patch: {"max_num_batched_tokens": 64},
    "rank": lambda patch: {"max_lora_rank": 16},
    "kernels": lambda patch: {"kernels": "compiled"},
    "lorry": lambda patch: _set(patch, kept_verdict, "_digest_of_package", lambda init: "other"),
    "library": lambda patch: _set(patch, kept_verdict, "version", lambda name: "9.9"),
    "python": lambda patch: _set(patch, sys, "version", "9.9"),
    "step": lambda patch: _set(patch, kept_verdict, "_step", lambda: ("avx2", "")),
    "processor": lambda patch: _set(patch, library, "processor_flags", lambda: frozenset({"sse"})),
    "model's code": lambda patch: _set(patch, kept_verdict, "_stamp", lambda path: (0, 0)),
    "threads": lambda patch: _set(patch, torch, "get_num_threads", lambda: 3),
}


def _set(patch: pytest.MonkeyPatch, place: Any, name: str, value: Any) -> dict[str, Any]:
    patch.setattr(place, name, value)
    return {}


def test_the_second_start_knows_what_rounds(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would run transformers' forward pass five times more."""
    measured = []
    noise = trial.Trial.noise

    def counted(self: trial.Trial, *rest: Any) -> trial.Noise:
        found = noise(self, *rest)
        measured.append((self, found))
        return found

    monkeypatch.setattr(trial.Trial, "noise", counted)
    monkeypatch.setattr(trial, "TOLERANCE", 0.0)
    monkeypatch.setattr(trial, "MEAN", 1e9)
    start(tiny_model("llama"), tmp_path)
    (found,) = [noise for one, noise in measured if one is selfcheck.SHORT]
    _, told = json.loads(verdict_in(tmp_path).read_bytes())
    assert told["noise"] == {"moved": found.moved, "beside": found.beside}
    measured.clear()
    core = start(tiny_model("llama"), tmp_path)
    assert core.executor.paths.kernels == "compiled" and measured == []


def test_whatever_it_depends_on_makes_it_stale(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = start(tiny_model("llama"), tmp_path)
    found = first_pass(load_tiny(tiny_model("llama"), quantization="nf4", kernels="auto"))
    # The modules of this start are others, with the same paths.
    shapes = dict(zip(range(9), found.shapes.values(), strict=False))
    settings, loaded = core.settings, core.loaded

    def key(found: paths.FirstPass, **more: Any) -> str:
        length = more.pop("max_model_len", loaded.max_model_len)
        return kept_verdict.key_of(
            replace(settings, **more), replace(loaded, max_model_len=length), found
        )

    found = paths.FirstPass({**shapes})
    keys = {"same": key(found)}
    assert key(found) == keys["same"]
    step = kept_verdict._step()
    for name, change in CHANGES.items():
        with monkeypatch.context() as patch:
            more = change(patch)
            if name == "processor":
                # It decides on the instruction set, too, which is another change.
                patch.setattr(kept_verdict, "_step", lambda: step)
            keys[name] = key(found, **more)
    narrow = {i: replace(shape, key_size=8) for i, shape in shapes.items()}
    keys["shapes"] = key(paths.FirstPass(narrow))
    keys["padded"] = key(paths.FirstPass({**shapes}, "why"))
    keys["dtype"] = kept_verdict.key_of(settings, replace(loaded, dtype=torch.bfloat16), found)
    keys["base"] = kept_verdict.key_of(settings, replace(loaded, kept=tmp_path), found)
    assert len(set(keys.values())) == len(keys), keys


def test_other_files_are_looked_at(looked: list[str], tmp_path: Path) -> None:
    folder, home = save_model("llama", tmp_path / "base"), tmp_path / "home"
    start(folder, home)
    shutil.copy(folder / "model.safetensors", tmp_path / "same")
    # With the same size and time; what the system notes of a change cannot be set.
    stat = (folder / "model.safetensors").stat()
    shutil.copyfile(save_model("llama", tmp_path / "b", seed=1) / "model.safetensors", folder / "n")
    shutil.move(folder / "n", folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    looked.clear()
    start(folder, home)
    assert looked == EVERYTHING


def verdict_in(home: Path) -> Path:
    (file,) = home.glob("quantized/*/verdict.json")
    return file


def test_a_wrong_description_hides_nothing(
    looked: list[str],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start(tiny_model("llama"), tmp_path)
    key, told = json.loads(verdict_in(tmp_path).read_bytes())
    for layer in told["described"]["layers"]:
        layer["attention_scale"] *= 3
    verdict_in(tmp_path).write_text(json.dumps([key, told]))
    looked.clear()
    core = start(tiny_model("llama"), tmp_path)
    assert core.executor.paths.kernels == "torch"
    assert "not the compiled step: sequences that run together differ" in caplog.text
    assert not [*tmp_path.glob("quantized/*/verdict.json")], "and it is not believed again"
    looked.clear()
    assert start(tiny_model("llama"), tmp_path).executor.paths.kernels == "compiled"
    assert looked == EVERYTHING


@pytest.mark.parametrize("told", [b"", b"[]", b'["key"]', b'["key", {"layers": 3}]', b"\xff{"])
def test_one_that_cannot_be_read_is_none(
    told: bytes, looked: list[str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    start(tiny_model("llama"), tmp_path)
    verdict_in(tmp_path).write_bytes(told)
    looked.clear()
    start(tiny_model("llama"), tmp_path)
    assert looked == EVERYTHING


def test_a_base_on_other_kernels_has_none(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "problem", lambda executor, *_: executor.paths.compiled and "wrong")
    assert start(tiny_model("llama"), tmp_path).executor.paths.kernels == "torch"
    assert not [*tmp_path.glob("quantized/*/verdict.json")]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "bloom", "granite", "smollm3"])
def test_a_description_is_the_same_after_json(
    family: str, tiny_model: Callable[[str], Path]
) -> None:
    loaded = load_tiny(tiny_model(family), quantization="int8", kernels="auto")
    described = suited(loaded, first_pass(loaded).shapes, 64)
    verdict = kept_verdict.Verdict(described, trial.Noise([0.1, 1e-9], [0.25, 0.0]))
    told = msgspec.json.encode(("key", verdict))
    assert kept_verdict._decode(told) == ("key", verdict)
