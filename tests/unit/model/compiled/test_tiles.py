"""Tiles: the emulation against torch's integers, and the real ones where a processor has them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorry.model.compiled import library, recipe
from support.compiled import library_file

HARNESS = """
#include "tiles.h"

/* sums += x * w, in tiles of this shape */
void multiply(const TileConfig *config, const void *x, const void *w, void *sums) {
    tile_config(config);
    tile_load(0, sums, 64);
    tile_load(4, x, 64);
    tile_load(6, w, 64);
    tile_dot(0, 4, 6);
    tile_store(0, sums, 64);
    tile_release();
}

void multiply_whole(const void *x, const void *w, void *sums) {
    multiply(&WHOLE_TILES, x, w, sums);
}

/* The same where x has signs. */
void multiply_signed(const void *x, const void *w, void *sums) {
    tile_config(&WHOLE_TILES);
    tile_load(0, sums, 64);
    tile_load(4, x, 64);
    tile_load(6, w, 64);
    tile_signed_dot(0, 4, 6);
    tile_store(0, sums, 64);
    tile_release();
}

void unconfigured(void) { tile_zero(0); }
"""

ROWS, OUTPUTS, INPUTS = 16, 16, 64

KINDS = {"emulated": "-DLORRY_TILES_EMULATED", "real": "-mamx-tile -mamx-int8"}


class TileConfig(ctypes.Structure):
    _fields_ = (
        ("palette", ctypes.c_uint8),
        ("start_row", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 14),
        ("bytes", ctypes.c_uint16 * 16),
        ("rows", ctypes.c_uint8 * 16),
    )


def compiler() -> str:
    found = shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.fixture(scope="module", params=KINDS)
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a library with what `HARNESS` has."""
    if request.param == "real" and "amx" not in library.instructions():
        pytest.skip("this processor has no AMX, or the kernel lends nobody its tiles")
    if not sys.platform.startswith("linux"):
        pytest.skip("made for Linux")
    folder = tmp_path_factory.mktemp("tiles")
    source, made = folder / "harness.c", folder / "harness.so"
    source.write_text(HARNESS)
    flags = [*recipe.FLAGS.split(), *KINDS[request.param].split(), "-I", str(library.FOLDER)]
    subprocess.run([compiler(), *flags, str(source), "-o", str(made)], check=True)
    return made


def as_tile(w_OI: Tensor) -> Tensor:
    """[16, 64] as the packed weights have it: four inputs of each output together."""
    return w_OI.view(OUTPUTS, INPUTS // 4, 4).transpose(0, 1).contiguous()


def product(x_RI: Tensor, w_OI: Tensor, sums_RO: Tensor) -> Tensor:
    exact = sums_RO.long() + x_RI.long() @ w_OI.long().t()
    return (exact + 2**31).remainder(2**32).sub(2**31).int()


def bytes_of(shape: tuple[int, int], low: int, high: int, dtype: torch.dtype, seed: int) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=dice).to(dtype)


X = {
    "any": bytes_of((ROWS, INPUTS), 0, 255, torch.uint8, 1),
    "largest": torch.full((ROWS, INPUTS), 255, dtype=torch.uint8),
    "one": torch.eye(ROWS, INPUTS, dtype=torch.uint8) * 255,
}
W = {
    "any": bytes_of((OUTPUTS, INPUTS), -128, 127, torch.int8, 2),
    "least": torch.full((OUTPUTS, INPUTS), -128, dtype=torch.int8),
    "largest": torch.full((OUTPUTS, INPUTS), 127, dtype=torch.int8),
}
SUMS = {
    "zero": torch.zeros(ROWS, OUTPUTS, dtype=torch.int32),
    "any": bytes_of((ROWS, OUTPUTS), -(2**31), 2**31 - 1, torch.int32, 3),
    "beyond": torch.full((ROWS, OUTPUTS), 2**31 - 5, dtype=torch.int32),
    "below": torch.full((ROWS, OUTPUTS), -(2**31), dtype=torch.int32),
}


@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("w", W)
@pytest.mark.parametrize("x", X)
def test_a_product_is_that_of_integers(harness: Path, x: str, w: str, sums: str) -> None:
    got, tile = SUMS[sums].clone(), as_tile(W[w])
    ctypes.CDLL(str(harness)).multiply_whole(
        *(ctypes.c_void_p(one.data_ptr()) for one in (X[x], tile, got))
    )
    assert torch.equal(got, product(X[x], W[w], SUMS[sums]))


@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("w", W)
@pytest.mark.parametrize("x", X)
def test_a_product_of_signed_numbers_is_that_of_integers(
    harness: Path, x: str, w: str, sums: str
) -> None:
    x_RI, got, tile = X[x].view(torch.int8), SUMS[sums].clone(), as_tile(W[w])
    ctypes.CDLL(str(harness)).multiply_signed(
        *(ctypes.c_void_p(one.data_ptr()) for one in (x_RI, tile, got))
    )
    assert torch.equal(got, product(x_RI, W[w], SUMS[sums]))


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("inputs", [4, 48, 64])
def test_a_tile_may_be_smaller(harness: Path, rows: int, inputs: int) -> None:
    config = TileConfig(palette=1)
    config.rows[0] = config.rows[4] = rows
    config.bytes[0] = config.bytes[6] = 64
    config.bytes[4], config.rows[6] = inputs, inputs // 4
    got, tile = SUMS["any"].clone(), as_tile(W["any"])
    ctypes.CDLL(str(harness)).multiply(
        ctypes.byref(config), *(ctypes.c_void_p(one.data_ptr()) for one in (X["any"], tile, got))
    )
    expected = product(X["any"][:, :inputs], W["any"][:, :inputs], SUMS["any"])
    assert torch.equal(got[:rows], expected[:rows])
    assert torch.equal(got[rows:], SUMS["any"][rows:])


def test_a_tile_without_a_shape_is_refused(harness: Path) -> None:
    call = f"import ctypes; ctypes.CDLL({str(harness)!r}).unconfigured()"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, check=False)
    assert done.returncode < 0


def test_the_real_library_multiplies_tiles(tmp_path: Path) -> None:
    flags = recipe.INSTRUCTIONS["amx"].split()
    probe = [compiler(), *flags, "-E", "-x", "c", "/dev/null", "-o", str(tmp_path / "probe")]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this compiler does not know AMX")
    if (objdump := shutil.which("objdump")) is None:
        pytest.skip("no objdump")
    listing = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", str(library_file("amx", tmp_path))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    used: dict[str, set[str]] = {}
    function = ""
    for line in listing.splitlines():
        if begins := re.match(r"[0-9a-f]+ <([^>]+)>:", line):
            function = begins[1].partition(".")[0]
        elif found := re.search(r"\t(tdp\w+|ldtilecfg|tilerelease)\b", line):
            used.setdefault(found[1], set()).add(function)
    assert "codes_in_tiles" in used["tdpbusd"]
    assert {"blocks_in_tiles4", "blocks_in_tiles8"} <= used["tdpbssd"]
    assert len(used) == 4


def test_without_the_kernels_permission_there_is_no_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    here = library.instructions()
    if "avx512" not in here or "amx" in here:
        pytest.skip("the kernel of a machine with AMX permits it")
    flags = library.processor_flags() | {"amx_tile", "amx_int8"}
    monkeypatch.setattr(library, "processor_flags", lambda: flags)
    assert library.instructions() == here
    # What it would be with it.
    monkeypatch.setattr(library, "_tiles_permitted", lambda: True)
    assert library.instructions() == ("amx", *here)
    monkeypatch.setattr(library, "processor_flags", lambda: flags - {"amx_int8"})
    assert library.instructions() == here
