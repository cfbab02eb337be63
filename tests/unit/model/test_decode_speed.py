"""What is said at start-up of the time that a token takes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lorry.core import Batch
from lorry.engine_core import EngineCore, load_core
from lorry.model import decode_speed
from lorry.model.compiled import compiled_model
from lorry.model.compiled.compiled_linear import CompiledLinear
from lorry.model.compiled.compiled_stack import CompiledStack
from lorry.model.decode_speed import DecodeSpeed, measured
from lorry.settings import Settings
from support.compiled import require_compiled_step
from support.families import HIDDEN

Started = tuple[EngineCore, list[str]]


@pytest.fixture
def start(
    tiny_model: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., Started]:
    require_compiled_step()

    def start(family: str = "llama", **more: object) -> Started:
        settings = Settings(
            model=str(tiny_model(family)),
            home=tmp_path,
            device="cpu",
            quantize="int8",
            kv_cache_memory=1 << 20,
        )
        said: list[str] = []
        core = load_core(dataclasses.replace(settings, **more), said.append)
        request.addfinalizer(core.close)
        return core, said

    return start


def lines(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("one token takes")]


def linear_bytes(core: EngineCore) -> int:
    modules = core.loaded.model.modules()
    return sum(module.nbytes for module in modules if isinstance(module, CompiledLinear))


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_base_that_is_large_enough_is_measured(
    start: Callable[..., Started], quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_speed, "LEAST", 1)
    core, said = start(quantize=quantize)
    (line,) = lines(said)
    assert re.fullmatch(
        r"one token takes [\d.]+ ms: [\d.]+ KiB at [\d.]+ GB/s, [\d.]+ of what this memory gives",
        line,
    )
    speed = measured(core.executor)
    assert speed is not None and speed.seconds is not None and speed.share is not None
    assert speed.nbytes == linear_bytes(core) > 0
    assert speed.seconds > 0 and speed.bandwidth > 0
    assert 0 < speed.share <= 1
    assert speed.share * speed.bandwidth * speed.seconds == pytest.approx(speed.nbytes)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_reading_reads_the_codes_of_every_linear_and_no_more_than_it_may(
    family: str, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = start(family)[0].executor.paths.compiled
    assert compiled is not None
    linears = [*compiled._linears, *compiled._stacks]
    codes = sum(linear.codes.nbytes for linear in linears)
    assert compiled.read_weights() == codes
    monkeypatch.setattr(compiled_model, "MOST_READ", 1000)
    assert compiled.read_weights() == 1000


@pytest.mark.parametrize(("family", "share"), [("mixtral", 2 / 4), ("olmoe", 3 / 8)])
def test_of_a_mixture_the_chosen_experts_count(
    family: str, share: float, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_speed, "LEAST", 1)
    core, said = start(family)
    assert lines(said)
    speed = measured(core.executor)
    assert speed is not None and speed.share is not None and 0 < speed.share <= 1
    stacks = [m for m in core.loaded.model.modules() if isinstance(m, CompiledStack)]
    assert len(stacks) == 4
    routers = sum(4 * stacks[0].experts * HIDDEN for _ in range(2))
    experts = sum(share * stack.nbytes for stack in stacks)
    assert speed.nbytes == linear_bytes(core) + routers + experts


def test_a_small_base_and_the_other_paths_are_not(
    start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not lines(start()[1])
    monkeypatch.setattr(decode_speed, "LEAST", 1)
    assert not lines(start(kernels="torch")[1])


def test_no_step_is_run_where_one_would_take_long(
    start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_speed, "LEAST", 1)
    monkeypatch.setattr(decode_speed, "LONGEST", 0.0)
    core, said = start()
    (line,) = lines(said)
    assert " s or more: " in line
    speed = measured(core.executor)
    assert speed is not None and speed.seconds is None and speed.share is None


def test_it_is_said_in_the_units_of_the_memory() -> None:
    speed = DecodeSpeed(747 << 20, 33.8e9, 0.0289)
    assert speed.said == (
        "one token takes 28.9 ms: 747.0 MiB at 27.1 GB/s, 0.80 of what this memory gives"
    )
    slow = DecodeSpeed(4 << 30, 10e9, None)
    assert slow.said == "one token takes 0.43 s or more: 4.0 GiB, and this memory gives 10.0 GB/s"


def test_the_compiled_step_has_the_threads_that_were_asked_for(
    start: Callable[..., Started],
) -> None:
    def after(count: int) -> int:
        core, said = start(threads=count)
        assert any(f", {count} threads" in line for line in said)
        running = psutil.Process().num_threads()
        core.close()
        return running - psutil.Process().num_threads()

    assert after(7) >= 6


@pytest.mark.parametrize(
    ("seconds", "fixed"),
    [
        # As long for eight tokens as for one: nobody knows how many would take longer.
        ({1: 1.0, 8: 1.0}, 64.0),
        ({1: 1.0, 8: 0.9}, 64.0),
        ({1: 1.0, 8: 1.7}, 9.0),
        ({1: 1.0, 8: 8.0}, 1.0),
    ],
)
def test_the_tokens_that_take_as_long_as_the_weights(
    seconds: dict[int, float], fixed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        decode_speed, "_quickest", lambda _, counts: [seconds[count] for count in counts]
    )
    assert decode_speed.fixed_tokens(None) == pytest.approx(fixed)  # type: ignore[arg-type]


class Clock:
    """Two clocks: the machine's, on which other work takes its time in every other step, and the
    process's own."""

    def __init__(self, own: Sequence[float]) -> None:
        """`own`: seconds of a step of one token, and of eight."""
        self._own, self._steps = own, 0
        self._wall = self._worked = 0.0

    def run(self, batch: Batch) -> None:
        (row,) = batch.rows
        took = self._own[len(row.token_ids) > 1]
        self._steps += 1
        self._worked += took
        self._wall += took * (10 if self._steps % 2 else 1)

    def perf_counter(self) -> float:
        return self._wall

    def process_time(self) -> float:
        return self._worked


def test_other_work_on_the_machine_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock((0.010, 0.017))
    paths = SimpleNamespace(compiled=object())
    executor = SimpleNamespace(run=clock.run, paths=paths)
    monkeypatch.setattr(decode_speed, "time", clock)
    assert decode_speed.fixed_tokens(executor) == pytest.approx(9.0)  # type: ignore[arg-type]
    # By the machine's clock each step of one token seems to take ten times as long.
    paths.compiled = None
    assert decode_speed.fixed_tokens(executor) == 64.0  # type: ignore[arg-type]


def test_it_is_measured_where_tokens_are_drafted(start: Callable[..., Started]) -> None:
    assert start()[0].fixed_tokens == decode_speed.FIXED_TOKENS
    assert 1.0 <= start(speculative="ngram")[0].fixed_tokens <= 64.0
