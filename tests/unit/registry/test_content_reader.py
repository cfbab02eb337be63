"""The engine's own process reads a stored content only if its digest is right."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lorry_adapters.errors import AdapterBroken, Problem, Remedy
from lorry_adapters.lora.weights import WEIGHTS_FILE
from lorry_adapters.registry.blobs import digest_of, folder_in
from lorry_adapters.registry.content_reader import ContentReader
from support.adapter_files import layout, save_adapter


@pytest.fixture
def stored(
    tmp_path: Path,
) -> tuple[ContentReader, str, Path]:
    made = save_adapter(tmp_path / "made", seed=1)
    digest = digest_of(made)
    folder = folder_in(tmp_path, digest)
    shutil.copytree(made, folder)
    return ContentReader(tmp_path, layout()), digest, folder


def test_it_reads_a_stored_content(stored: tuple[ContentReader, str, Path]) -> None:
    reader, digest, _ = stored
    assert reader.load(digest).digest == digest


def test_changed_files_are_bad_and_say_whose(stored: tuple[ContentReader, str, Path]) -> None:
    reader, digest, folder = stored
    with (folder / WEIGHTS_FILE).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(AdapterBroken, match="missing or were changed") as caught:
        reader.load(digest)
    assert caught.value.bad_files == digest


def test_files_that_are_gone_are_bad(stored: tuple[ContentReader, str, Path]) -> None:
    reader, digest, folder = stored
    shutil.rmtree(folder)
    with pytest.raises(AdapterBroken, match="missing") as caught:
        reader.load(digest)
    assert caught.value.bad_files == digest


def test_files_that_cannot_be_read_now_are_not_remembered_as_bad(
    stored: tuple[ContentReader, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, digest, _ = stored

    def busy(*given: object) -> bool:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("lorry_adapters.registry.content_reader.intact", busy)
    with pytest.raises(AdapterBroken, match="Too many open files") as caught:
        reader.load(digest)
    assert caught.value.bad_files is None


def test_files_with_the_right_digest_that_do_not_fit_the_base_are_bad(
    stored: tuple[ContentReader, str, Path],
) -> None:
    _, digest, folder = stored
    other = ContentReader(folder.parent.parent, layout(hidden=8))
    with pytest.raises(AdapterBroken, match="no longer load") as caught:
        other.load(digest)
    assert caught.value.bad_files == digest


def test_the_remedy_of_files_that_no_longer_load_is_kept(tmp_path: Path) -> None:
    made = save_adapter(tmp_path / "made", seed=1)
    tensors = load_file(made / WEIGHTS_FILE)
    for half in "AB":
        q_proj = tensors[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight"]
        tensors[f"base_model.model.model.vision_tower.fc1.lora_{half}.weight"] = q_proj.clone()
    save_file(tensors, made / WEIGHTS_FILE)
    digest = digest_of(made)
    shutil.copytree(made, folder_in(tmp_path, digest))
    with pytest.raises(AdapterBroken, match="no longer load") as caught:
        ContentReader(tmp_path, layout()).load(digest)
    assert isinstance(caught.value.message, Problem)
    assert caught.value.message.remedy is Remedy.KEEP_TEXT
