"""The second start of a base takes its packed linears from the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorry.errors import ModelError
from lorry.model.base_loader import LoadedModel, load
from lorry.model.compiled import kept_base
from lorry.model.compiled.compiled_linear import CompiledLinear
from lorry.model.compiled.compiled_stack import CompiledStack
from lorry.model.experts import stacks_of
from lorry.model.memory import digest_of_base
from lorry.model.paths import replacer
from lorry.settings import Settings
from support.compiled import require_compiled_step


@pytest.fixture(autouse=True, scope="module")
def _built() -> None:
    require_compiled_step()


def start(folder: Path, home: Path, quantize: str = "nf4", **more: object) -> LoadedModel:
    settings = Settings(
        model=str(folder),
        home=home,
        device="cpu",
        dtype="float32",
        quantize=quantize,
        **more,  # type: ignore[arg-type]
    )
    return load(settings, lambda _: None, replacer=replacer("auto", home))


def logits(loaded: LoadedModel) -> Tensor:
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return loaded.model(ids).logits  # type: ignore[no-any-return]


def forbid_packing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kept_base, "replace_linears", lambda *_: pytest.fail("packed again"))


@pytest.mark.parametrize("quantize", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize(
    "family",
    ["llama", "llama_tied", "qwen2", "gpt2", "phi3", "gemma3", "mixtral", "qwen2_moe", "qwen3_moe"],
)
def test_the_second_start_is_the_first(
    family: str,
    quantize: str,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = start(tiny_model(family), tmp_path, quantize)
    forbid_packing(monkeypatch)
    second = start(tiny_model(family), tmp_path, quantize)
    assert any(isinstance(module, CompiledLinear) for module in second.model.modules())
    assert torch.equal(logits(first), logits(second))
    assert first.layout == second.layout and first.memory == second.memory
    assert first.quantization == second.quantization == quantize
    mine, theirs = digest_of_base(second.model), digest_of_base(first.model)
    assert mine == theirs
    kinds = [{type(stack) for _, _, stack in stacks_of(one.model)} for one in (first, second)]
    assert kinds[0] == kinds[1] == ({CompiledStack} if first.layout.parameters else set())


def test_other_weights_are_packed_anew_and_the_old_ones_go(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, home = tmp_path / "base", tmp_path / "home"
    shutil.copytree(tiny_model("llama"), folder)
    start(folder, home)
    (kept,) = [one for one in (home / "quantized").iterdir() if one.is_dir()]
    (folder / "model.safetensors").touch()
    start(folder, home)
    (again,) = [one for one in (home / "quantized").iterdir() if one.is_dir()]
    assert again != kept
    start(folder, home, "int8")
    assert len([one for one in (home / "quantized").iterdir() if one.is_dir()]) == 2


@pytest.mark.parametrize("field", ["codes", "chunk_scale", "scale_O"])
def test_tensors_of_other_sizes_are_not_read(
    field: str, tiny_model: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start(tiny_model("llama"), tmp_path)
    (file,) = (tmp_path / "quantized").glob("*/packed.safetensors")
    with safe_open(file, framework="pt") as stored:
        metadata, tensors = stored.metadata(), {k: stored.get_tensor(k) for k in stored.keys()}  # noqa: SIM118
    key = f"model.layers.1.mlp.down_proj:{field}"
    tensors[key] = tensors[key].flatten()[1:].clone()
    save_file(tensors, file, metadata=metadata)
    second = start(tiny_model("llama"), tmp_path)
    assert f"cannot be read ({field}: " in caplog.text
    assert torch.equal(logits(first), logits(second))


def test_what_cannot_be_read_is_packed_anew(
    tiny_model: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start(tiny_model("llama"), tmp_path)
    (file,) = (tmp_path / "quantized").glob("*/packed.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    second = start(tiny_model("llama"), tmp_path)
    assert "cannot be read" in caplog.text
    assert torch.equal(logits(first), logits(second))
    assert file.stat().st_size > 1000


def test_a_full_disk_costs_the_next_start_its_time_and_nothing_else(
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise ModelError("no room")

    monkeypatch.setattr(kept_base, "require_room", full)
    loaded = start(tiny_model("llama"), tmp_path)
    assert any(isinstance(module, CompiledLinear) for module in loaded.model.modules())
    assert "not kept for the next start: no room" in caplog.text
    assert not list((tmp_path / "quantized").iterdir())


def test_without_a_home_nothing_is_kept(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    settings = Settings(
        model=str(tiny_model("llama")), home=tmp_path, device="cpu", dtype="float32", quantize="nf4"
    )
    load(settings, lambda _: None, replacer=replacer("auto"))
    assert not (tmp_path / "quantized").exists()
