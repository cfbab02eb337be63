"""Safetensors, as safetensors itself reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorry.model.compiled.tensor_reader import read_tensors

TENSORS = {
    "codes": torch.arange(-60, 60, dtype=torch.int8).view(5, 4, 6),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "sums": torch.arange(11, dtype=torch.int32),
    "half": torch.randn(3, 5).half(),
    "table": torch.randn(4, 2).bfloat16(),
    "scale": torch.randn(9),
    "nothing": torch.empty(0, 3),
}


def write(folder: Path) -> Path:
    save_file(TENSORS, folder / "some.safetensors", metadata={"what": "a test"})
    return folder / "some.safetensors"


@pytest.mark.parametrize("threads", [1, 3])
def test_they_are_what_was_written(threads: int, tmp_path: Path) -> None:
    metadata, tensors = read_tensors(write(tmp_path), threads)
    assert metadata == {"what": "a test"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype is tensor.dtype and torch.equal(tensors[name], tensor)
    write(tmp_path).write_bytes(b"")
    assert torch.equal(tensors["scale"], TENSORS["scale"]), "they are copies"


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_file_that_is_cut_off(keep: int, tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises((ValueError, KeyError)):
        read_tensors(file, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [-4, 32]},
        {"data_offsets": [0, 1 << 40]},
        {"data_offsets": [0, 8]},
        {"shape": [1 << 50]},
        {"shape": [8]},
        {"dtype": "F64"},
    ],
)
def test_a_header_that_lies(change: dict[str, object], tmp_path: Path) -> None:
    file = write(tmp_path)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["scale"] |= change
    changed = json.dumps(header).encode()
    file.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])
    with pytest.raises((ValueError, KeyError)):
        read_tensors(file, 1)
