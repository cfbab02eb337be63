"""Bottleneck adapters over HTTP, as AdapterHub's own library has them.

`adapterhub/` holds what that library saved, on the tiny models of `support.tiny`, and what
it then answered (`adapterhub/make.py`). Alone, and in one batch [base, this, a plain LoRA,
this at half its strength].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.matrix_bench import Bench, bench
from support.peft_adapters import pack

GOLDEN = Path(__file__).parent / "adapterhub"
CASES = sorted(file.parent.name for file in GOLDEN.glob("*/logprobs.json"))
FILES = ("adapter_config.json", "adapter.safetensors")
TOLERANCE = 1e-4
LOUD = 0.01


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = [(case.partition("-")[0], case) for case in CASES]
        names = ("lorry", "case")
        metafunc.parametrize(names, cases, indirect=["lorry"], ids=CASES, scope="module")
    else:
        metafunc.parametrize("lorry", ["llama"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def lorry(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("adapterhub")
    with bench(tiny_model(request.param), request.param, home) as found:
        yield found


def test_answers_as_the_library_does(case: str, lorry: Bench, tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / case / "logprobs.json").read_text())
    uploaded = lorry.live.upload("this", pack(GOLDEN / case, tmp_path / "a.zip", FILES))
    assert uploaded.status_code == 201, uploaded.text[:500]
    try:
        record = uploaded.json()
        assert (record["peft_type"], record["rank"]) == ("BOTTLENECK", 0)
        compare(lorry.ask(("this", 1.0)), golden["full"])
        base, one, plain, half = lorry.ask_together(
            [None, ("this", 1.0), ("plain", 1.0), ("this", 0.5)]
        )
        compare(base, golden["base"])
        compare(one, golden["full"])
        compare(half, golden["half"])
        assert lorry.error(plain, lorry.plain) < TOLERANCE
    finally:
        lorry.remove("this")
    assert_loud(golden)


def test_the_two_files_without_an_archive(lorry: Bench) -> None:
    folder = GOLDEN / "llama-houlsby"
    files = {name: (name, (folder / name).read_bytes()) for name in FILES}
    uploaded = lorry.live.http.post("/adapters", data={"name": "two"}, files=files)
    assert uploaded.status_code == 201, uploaded.text[:500]
    golden = json.loads((folder / "logprobs.json").read_text())
    compare(lorry.ask(("two", 1.0)), golden["full"])
    lorry.remove("two")


def compare(answer: httpx.Response, golden: dict[str, list[Any]]) -> None:
    assert answer.status_code == 200, answer.text[:300]
    details = answer.json()["details"]
    entries = details["prefill"] + details["tokens"]
    assert [entry["id"] for entry in entries] == golden["ids"]
    found = [entry["logprob"] for entry in entries[1:]]
    assert found == pytest.approx(golden["logprobs"], abs=TOLERANCE)


def assert_loud(golden: dict[str, dict[str, list[float]]]) -> None:
    """Over the prompt, which is the same: what the tolerance could hide is not compared."""
    base, full, half = (golden[one]["logprobs"][:-2] for one in ("base", "full", "half"))
    for a, b in ((base, full), (base, half), (full, half)):
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) > LOUD
