"""An adapter that makes a step fail ends its own requests; their neighbours never notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, refused, serve
from lorry import engine_program
from lorry.engine.loop import MAX_FAILURES
from lorry.settings import Settings
from support import poison as poison_in
from support.compiled import require_compiled_step
from support.poison import Poison, take_away

SHORT, LONG = "Ahoy there", "Ahoy " * 40
LENGTH = 100
"""Tokens: between the two prompts' lengths."""


Give = Callable[..., None]


@pytest.fixture(
    scope="module",
    params=[
        (quantize, kernels, apart)
        for quantize, kernels in (("none", "torch"), ("int8", "compiled"))
        for apart in ("off", "on")
    ],
    ids=lambda one: f"{one[1]}, engine process {one[2]}",
)
def served(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    archives: Callable[[int], Path],
) -> Iterator[Live]:
    quantize, kernels, apart = request.param
    if kernels == "compiled":
        require_compiled_step()
    home = tmp_path_factory.mktemp("home")
    settings = settings_for(home, quantize=quantize, kernels=kernels, engine_process=apart)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_program, "run", poison_in.program)
        with serve(settings) as live:
            if live.server.core is not None:
                poison_in.plant(live.server.core)
            for seed, name in enumerate(("good", "other", "bad")):
                live.upload(name, archives(seed)).raise_for_status()
            yield live


@pytest.fixture
def live(served: Live, archives: Callable[[int], Path]) -> Live:
    # The same files again: what was known to be wrong with them is forgotten.
    assert served.upload("bad", archives(2)).status_code == 200
    return served


@pytest.fixture
def poison(live: Live) -> Iterator[Give]:
    """Spoils the rows of `bad` that are longer than `longer_than` tokens."""
    digest = live.http.get("/adapters/bad").json()["digest"]
    home = live.server.settings.home
    yield lambda **how: Poison(digest, **how).give(home)
    take_away(home)


def ask(live: Live, adapter: Any, inputs: str = SHORT) -> Any:
    body = {
        "inputs": inputs,
        "adapter": adapter,
        "parameters": {"max_new_tokens": 12, "details": True, "ignore_eos_token": True},
    }
    return live.http.post("/generate", json=body)


def tokens(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


def broken(answer: Any) -> str:
    """What it says of the adapter."""
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_broken")
    return str(answer.json()["error"])


def together(live: Live, wanted: list[tuple[Any, str]]) -> list[Any]:
    with ThreadPoolExecutor(len(wanted)) as pool:
        return list(pool.map(lambda one: ask(live, *one), wanted))


NEIGHBOURS: list[tuple[Any, str]] = [
    (None, SHORT),
    ("good", SHORT),
    (["good", "other"], LONG),
    (None, LONG),
    ("other", SHORT),
    ("good", LONG),
    (None, SHORT),
]


@pytest.mark.parametrize("gives_nan", [False, True], ids=["raises", "NaN"])
def test_seven_neighbours_get_what_they_get_alone(
    live: Live, poison: Give, gives_nan: bool
) -> None:
    alone = [tokens(ask(live, *one)) for one in NEIGHBOURS]
    poison(gives_nan=gives_nan)
    *well, ill = together(live, [*NEIGHBOURS, ("bad", SHORT)])
    assert [tokens(answer) for answer in well] == alone
    assert ill.status_code == (500 if gives_nan else 422)
    assert "'bad'" in ill.json()["error"]


def test_it_is_refused_until_its_files_come_again(
    live: Live, poison: Give, archives: Callable[[int], Path]
) -> None:
    poison()
    assert live.http.get("/adapters/bad").json()["broken"] is None
    before = live.metric("lorry_engine_failed_steps_total")
    said = broken(ask(live, "bad"))
    assert said.startswith("adapter 'bad' (version 1) cannot be served: computing it failed")
    assert "ArithmeticError" in said and "upload it again" in said
    steps = live.metric("lorry_engine_steps_total")
    for adapter in ("bad", ["good", {"name": "bad", "scale": 0.5}]):
        assert broken(ask(live, adapter)) == said
    body = {"model": "bad", "messages": [{"role": "user", "content": "x"}], "stream": True}
    answer = live.http.post("/v1/chat/completions", json=body)
    assert refused(answer, 400, "adapter_broken")["message"] == said
    assert live.metric("lorry_engine_steps_total") == steps
    assert live.metric("lorry_engine_failed_steps_total") == before + 1
    assert "computing it failed" in live.http.get("/adapters/bad").json()["broken"]
    assert live.metric("lorry_adapters_broken") == 1
    # Its slot is free again.
    assert live.http.get("/adapters/bad").json()["residency"] == "disk"

    take_away(live.server.settings.home)
    assert live.upload("bad", archives(2)).status_code == 200
    assert tokens(ask(live, "bad"))
    assert live.http.get("/adapters/bad").json()["broken"] is None
    assert live.metric("lorry_adapters_broken") == 0


def test_one_that_fails_for_long_prompts_alone(live: Live, poison: Give) -> None:
    poison(longer_than=LENGTH)
    expected = tokens(ask(live, "bad", SHORT))
    answers = together(live, [("bad", SHORT), ("bad", LONG), ("good", LONG), ("bad", SHORT)])
    assert broken(answers[1])
    assert tokens(answers[2])
    # They run on, or come too late.
    for answer in (answers[0], answers[3]):
        assert answer.status_code == 422 or tokens(answer) == expected


def test_a_hundred_failures_do_not_stop_the_server(
    live: Live, poison: Give, archives: Callable[[int], Path]
) -> None:
    poison()
    expected = tokens(ask(live, "good"))
    rounds = max(7, 2 * MAX_FAILURES)
    for _ in range(rounds):
        assert live.upload("bad", archives(2)).status_code == 200
        answers = together(live, [("bad", SHORT)] * 15 + [("good", SHORT)])
        assert {answer.status_code for answer in answers[:-1]} == {422}
        assert tokens(answers[-1]) == expected
    assert live.http.get("/health/ready").status_code == 200


def test_a_sum_is_refused_for_the_one_that_is_at_fault(live: Live, poison: Give) -> None:
    poison()
    answer = ask(live, ["good", "bad"])
    assert "adapter 'bad' (version 1)" in broken(answer)
    assert live.http.get("/adapters/good").json()["broken"] is None
    assert tokens(ask(live, ["good", "other"]))
