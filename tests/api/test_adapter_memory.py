"""The memory of all adapters on real servers: told, shared, waited for, and refused by numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from api.live import Live, refused, serve
from lorry.settings import Settings
from lorry_adapters.lora.adapter_memory import PARTS
from support.patience import PATIENCE, wait_until
from support.tiny import build_model

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj"]

KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "rank 4": lambda: peft.LoraConfig(r=4, target_modules=LINEARS),
    "rank 64": lambda: peft.LoraConfig(r=64, target_modules=LINEARS),
    "saved head": lambda: peft.LoraConfig(r=4, target_modules=LINEARS, modules_to_save=["lm_head"]),
    "virtual tokens": lambda: peft.PromptTuningConfig(
        num_virtual_tokens=200, task_type="CAUSAL_LM"
    ),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=8, task_type="CAUSAL_LM"),
    "shira": lambda: peft.ShiraConfig(r=4, target_modules=LINEARS),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=50, target_modules=LINEARS),
}


@pytest.fixture(scope="module")
def kind(tmp_path_factory: pytest.TempPathFactory, zip_of: Callable[..., Path]) -> Any:
    """`kind(name, seed)`: a zip of an adapter of KINDS."""
    made: dict[tuple[str, int], Path] = {}

    def make(name: str, seed: int = 1) -> Path:
        if (name, seed) not in made:
            folder = tmp_path_factory.mktemp("kind") / "adapter"
            model = peft.get_peft_model(build_model("llama"), KINDS[name]())
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            model.save_pretrained(folder)
            made[name, seed] = zip_of(folder)
        return made[name, seed]

    return make


@contextmanager
def small(
    settings_for: Callable[..., Settings], home: Path, memory: int, **fields: Any
) -> Iterator[Live]:
    with serve(settings_for(home, adapter_memory=memory, max_loras=4, **fields)) as live:
        yield live


def parts(live: Live) -> dict[str, int]:
    return {part: int(live.metric("lorry_adapter_memory_bytes", part=part)) for part in PARTS}


def bytes_of(live: Live, archive: Path) -> dict[str, int]:
    """What an adapter takes in a slot alone, by part; the host cache keeps nothing."""
    assert live.upload("measured", archive).status_code == 201
    live.generate(adapter="measured")
    found = parts(live)
    live.wait_until_idle()
    assert live.http.delete("/adapters/measured").status_code == 204
    wait_until(lambda: sum(parts(live).values()) == 0, "a removed adapter to leave")
    return found


@pytest.fixture(scope="module", params=["int8", "none"])
def measured(
    request: pytest.FixtureRequest,
    settings_for: Callable[..., Settings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Live]:
    """A server with room for everything: with the compiled step, and with PyTorch's operations."""
    home = tmp_path_factory.mktemp("home")
    fields = {"quantize": request.param, "host_cache_memory": 0}
    with small(settings_for, home, 64 << 20, **fields) as live:
        yield live


def test_every_part_is_told(measured: Live, kind: Callable[..., Path]) -> None:
    plain, large = (bytes_of(measured, kind(f"rank {rank}")) for rank in (4, 64))
    assert plain["pairs"] > 0 and plain["deltas"] == plain["heads"] == plain["virtual_tokens"] == 0
    # By the rank in fact, in pages or padded to eight.
    assert large["pairs"] > 5 * plain["pairs"]
    head = bytes_of(measured, kind("saved head"))
    vocabulary, width = build_model("llama").get_output_embeddings().weight.shape
    assert sum(head.values()) - sum(plain.values()) >= vocabulary * width
    assert bytes_of(measured, kind("virtual tokens"))["virtual_tokens"] >= 200 * width * 4
    assert bytes_of(measured, kind("prefix"))["virtual_tokens"] > 0
    assert bytes_of(measured, kind("shira"))["deltas"] > 0
    assert bytes_of(measured, kind("fourierft"))["deltas"] > width * width


def test_info_and_metrics_tell_the_same(measured: Live, kind: Callable[..., Path]) -> None:
    assert measured.upload("told", kind("rank 4")).status_code == 201
    measured.generate(adapter="told")
    measured.wait_until_idle()
    memory = measured.http.get("/info").json()["memory"]
    assert memory["adapter_limit"] == 64 << 20
    assert measured.metric("lorry_adapter_memory_limit_bytes") == 64 << 20
    assert {part: memory[f"adapter_{part}"] for part in PARTS} == parts(measured)
    assert measured.http.delete("/adapters/told").status_code == 204
    wait_until(lambda: sum(parts(measured).values()) == 0, "a removed adapter to leave")


def test_adapters_take_turns_in_a_small_memory(
    tmp_path: Path,
    settings_for: Callable[..., Settings],
    kind: Callable[..., Path],
    measured: Live,
) -> None:
    """Slots for four, memory for two: each is served as it is with room for all."""
    quantize = measured.server.settings.quantize
    every = [kind("rank 64", seed) for seed in (1, 2, 3)] + [kind("rank 4"), kind("saved head")]
    names = [f"one-{number}" for number in range(len(every))]
    sizes = [sum(bytes_of(measured, archive).values()) for archive in every]
    limit = 2 * max(sizes) + max(sizes) // 2

    def answers(live: Live) -> dict[str, str]:
        for name, archive in zip(names, every, strict=True):
            assert live.upload(name, archive).status_code == 201
        found: dict[str, str] = {}

        def ask(name: str) -> None:
            found[name] = live.generate(adapter=name)["generated_text"]

        threads = [threading.Thread(target=ask, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        return found

    wide = settings_for(tmp_path / "wide", quantize=quantize, max_loras=4)
    with serve(wide) as live:
        expected = answers(live)
    with small(settings_for, tmp_path / "small", limit, quantize=quantize) as live:
        assert answers(live) == expected
        assert sum(parts(live).values()) <= limit
        assert answers_again(live, names) == expected
        assert live.metric("lorry_adapter_evictions_total") > 0


def answers_again(live: Live, names: list[str]) -> dict[str, str]:
    return {name: live.generate(adapter=name)["generated_text"] for name in names}


def test_what_can_never_fit_is_refused_at_upload(
    tmp_path: Path, settings_for: Callable[..., Settings], kind: Callable[..., Path]
) -> None:
    with small(settings_for, tmp_path, 40 << 10) as live:
        error = refused(live.upload("large", kind("rank 64")), 422, "invalid_adapter")
        (problem,) = error["problems"]
        assert problem.startswith("it needs at least ") and "40.0 KiB" in problem
        assert "--adapter-memory (LORRY_ADAPTER_MEMORY)" in problem
        assert live.upload("small", kind("rank 4")).status_code == 201
        assert live.generate(adapter="small")


def test_what_was_stored_before_is_refused_by_numbers_and_others_go_on(
    tmp_path: Path, settings_for: Callable[..., Settings], kind: Callable[..., Path]
) -> None:
    with small(settings_for, tmp_path, 64 << 20) as live:
        assert live.upload("large", kind("rank 64")).status_code == 201
        assert live.upload("small", kind("rank 4")).status_code == 201
        alone = live.generate(adapter="small")["generated_text"]
    with small(settings_for, tmp_path, 40 << 10) as live:
        for _ in range(2):
            answer = live.http.post("/generate", json={"inputs": "x", "adapter": "large"})
            assert answer.status_code == 507, answer.text
            assert "all adapters together have 40.0 KiB" in answer.json()["error"]
            assert "--adapter-memory" in answer.json()["error"]
            assert live.generate(adapter="small")["generated_text"] == alone
        both = live.http.post("/generate", json={"inputs": "x", "adapter": ["large", "small"]})
        assert both.status_code == 507, both.text
        assert live.http.get("/health/ready").status_code == 200


def test_a_vector_waits_for_nobody_and_takes_what_it_needs(
    tmp_path: Path, settings_for: Callable[..., Settings], kind: Callable[..., Path]
) -> None:
    """A pooled row copies an adapter of the compiled step to the general path."""
    with small(settings_for, tmp_path, 64 << 20, quantize="int8") as live:
        assert live.upload("plain", kind("rank 4")).status_code == 201
        live.generate(adapter="plain")
        before = parts(live)["pairs"]
        asked = {"model": "plain", "input": "hello"}
        assert live.http.post("/v1/embeddings", json=asked).status_code == 200
        live.wait_until_idle()
        live.generate(adapter="plain")
        assert parts(live)["pairs"] > before
        needed = sum(parts(live).values())
    with small(settings_for, tmp_path, needed - 1000, quantize="int8") as live:
        alone = live.generate(adapter="plain")["generated_text"]
        answer = live.http.post("/v1/embeddings", json=asked)
        assert answer.status_code == 507, answer.text
        assert "of memory" in answer.json()["error"]["message"]
        assert live.generate(adapter="plain")["generated_text"] == alone
