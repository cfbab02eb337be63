"""What an error of an adapter says over HTTP: what is wrong, and what to do here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from api.live import Live, refused, serve
from lorry.settings import Settings

RANK = "--max-lora-rank 8 (LORRY_MAX_LORA_RANK)"


def test_a_rank_over_the_limit_names_the_setting_at_upload_and_after_a_restart(
    tmp_path: Path, settings_for: Callable[..., Settings], archives: Callable[[int], Path]
) -> None:
    home = tmp_path / "home"
    with serve(settings_for(home)) as one:
        assert one.upload("legal", archives(1)).status_code == 201
    with serve(settings_for(home, max_lora_rank=4)) as one:
        error = refused(one.upload("pirate", archives(2)), 422, "invalid_adapter")
        assert RANK in error["message"]
        assert any(RANK in problem for problem in error["problems"])
        assert RANK in one.http.get("/adapters/legal").json()["broken"]
        body = {"inputs": "Ahoy", "adapter": "legal"}
        assert RANK in one.http.post("/generate", json=body).json()["error"]


def test_a_sum_that_needs_more_slots_names_the_setting(
    fresh: Live, archives: Callable[[int], Path]
) -> None:
    names = [f"part-{seed}" for seed in range(5)]
    for seed, name in enumerate(names):
        assert fresh.upload(name, archives(seed)).status_code == 201
    answer = fresh.http.post("/generate", json={"inputs": "Ahoy", "adapter": names})
    assert answer.status_code == 422
    assert "the server has 4 slots" in answer.json()["error"]
    assert answer.json()["error"].endswith("start the server with more --max-loras")


def test_a_disabled_adapter_names_the_command(fresh: Live, archives: Callable[[int], Path]) -> None:
    assert fresh.upload("legal", archives(1), enabled="false").status_code == 201
    body = {"model": "legal", "prompt": "Ahoy"}
    error = refused(fresh.http.post("/v1/completions", json=body), 409, "adapter_disabled")
    assert "lorry adapters enable legal" in error["message"]
