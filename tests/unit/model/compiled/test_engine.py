"""The compiled step's threads and memory come and go."""

from __future__ import annotations

import ctypes
import gc
import resource

import psutil
import torch

from lorry.model.compiled import structs
from support.patience import wait_until

WIDTH = 512


def model() -> structs.Model:
    return structs.Model(
        hidden=WIDTH, heads=8, kv_heads=2, head_size=64, inner=WIDTH, vocab=16, max_rank=8
    )


class Linear:
    """The identity, so that a step of it can be told from none."""

    def __init__(self) -> None:
        codes_OI = torch.eye(WIDTH, dtype=torch.int8) * 127
        blocks = codes_OI.view(WIDTH // 16, 16, WIDTH // 4, 4)
        self.codes = blocks.permute(0, 2, 1, 3).contiguous()
        self.scale_O = torch.full((WIDTH,), 1 / 127)
        self.sum_O = torch.full((WIDTH,), 127, dtype=torch.int32)
        self.struct = structs.Linear(
            codes=self.codes.data_ptr(),
            scale_O=self.scale_O.data_ptr(),
            sum_O=self.sum_O.data_ptr(),
            out=WIDTH,
            in_=WIDTH,
        )

    def check(self, built: ctypes.CDLL, engine: int, x_TI: torch.Tensor) -> None:
        y_TO = torch.empty_like(x_TI)
        built.lorry_linear(
            engine, ctypes.byref(self.struct), x_TI.data_ptr(), y_TO.data_ptr(), len(x_TI)
        )
        assert torch.allclose(x_TI, y_TO, atol=1e-3)


def test_engines_leave_nothing_behind(built: ctypes.CDLL) -> None:
    process, described, linear = psutil.Process(), model(), Linear()
    x_TI = torch.rand(64, WIDTH)

    def life(num_threads: int) -> None:
        engine = built.lorry_engine(ctypes.byref(described), 64, 512, 4096, num_threads)
        assert engine
        assert process.num_threads() == threads + num_threads - 1
        linear.check(built, engine, x_TI)
        built.lorry_engine_free(engine)
        # The kernel may list a thread for a moment after it was joined.
        wait_until(lambda: process.num_threads() == threads)

    # Engines of other tests, if nothing has them any more, end now and not in the middle.
    gc.collect()
    threads = process.num_threads()
    for _ in range(20):
        life(4)
    gc.collect()
    before = process.memory_info().rss
    for round_ in range(100):
        life(1 + round_ % 4)
    # One engine's buffers of touched pages are half a megabyte.
    assert process.memory_info().rss - before < 2 << 20


def test_many_engines_live_side_by_side(built: ctypes.CDLL) -> None:
    described, linear = model(), Linear()
    engines = [built.lorry_engine(ctypes.byref(described), 4, 8, 64, 2) for _ in range(8)]
    assert all(engines)
    for _ in range(50):
        for engine in engines:
            linear.check(built, engine, torch.rand(3, WIDTH))
    for engine in engines:
        built.lorry_engine_free(engine)


def test_more_than_there_is_memory_for_is_no_engine(built: ctypes.CDLL) -> None:
    described = model()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # Or a machine that promises any amount of memory would promise this one, too.
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (1 << 30), hard))
    try:
        for _ in range(5):
            assert not built.lorry_engine(ctypes.byref(described), 2**31 - 1, 8, 64, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_more_threads_than_cores_finish(built: ctypes.CDLL) -> None:
    described, linear = model(), Linear()
    engine = built.lorry_engine(ctypes.byref(described), 8, 8, 64, 32)
    assert engine
    for tokens in (1, 2, 8):
        linear.check(built, engine, torch.rand(tokens, WIDTH))
    built.lorry_engine_free(engine)


def test_memory_is_read_once_however_many_threads_share_it(built: ctypes.CDLL) -> None:
    described = model()
    regions = [torch.randint(-(2**40), 2**40, (size,)) for size in (1, 5, 1000, 4099, 0)]
    starts = (ctypes.c_void_p * len(regions))(*(region.data_ptr() for region in regions))
    counts = (ctypes.c_int64 * len(regions))(*(len(region) for region in regions))
    for num_threads in (1, 2, 7, 32):
        engine = built.lorry_engine(ctypes.byref(described), 1, 1, 16, num_threads)
        found = built.lorry_read(engine, starts, counts, len(regions))
        built.lorry_engine_free(engine)
        assert found == sum(int(region.sum()) for region in regions)
