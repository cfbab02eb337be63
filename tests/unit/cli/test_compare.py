"""`lorry adapters compare` against a real server, and its numbers against PEFT's distributions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from api.live import Live, serve
from lorry.cli import main
from lorry.cli.divergence import Side, compare
from lorry.settings import Settings
from support.peft_oracle import Adapters, PeftOracle

TOKENS = 12
PROMPTS = [f"How do I cook {what}" for what in ("rice", "the lorry", "a letter", "water")] * 6


@pytest.fixture(scope="module")
def live(tiny_model, peft_adapter, zip_of, tmp_path_factory) -> Iterator[Live]:
    settings = Settings(
        model=str(tiny_model("llama")),
        home=tmp_path_factory.mktemp("home"),
        device="cpu",
        dtype="float32",
        quantize="none",
        kv_cache_memory=4 << 20,
        samples=False,
    )
    with serve(settings) as server:
        for name, seed in (("one", 0), ("two", 1)):
            archive = zip_of(peft_adapter("llama", "plain", seed=seed))
            assert server.upload(name, archive).status_code == 201
        yield server


@pytest.fixture
def run(live: Live, tool, tmp_path: Path):
    """`run("one", "base")`: the JSON of a comparison, or the error's line."""
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(PROMPTS) + "\n")

    def compared(*arguments: object, code: int = 0, prompts: Path = file) -> Any:
        given = ["--prompts", prompts, "--tokens", TOKENS, "--url", live.url]
        return tool("compare", *arguments, *given, code=code)

    return compared


class Recorded:
    """A server's answers, and every `/generate` among them."""

    def __init__(self, live: Live) -> None:
        self._http = live.http
        self.answers: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def request(self, method: str, path: str, *, json: dict[str, Any]) -> Any:
        answer = self._http.request(method, path, json=json)
        assert answer.status_code == 200, answer.text
        if path == "/generate":
            self.answers.append((json, answer.json()))
        return answer.json()


def test_the_numbers_are_those_of_the_distributions(live: Live, tiny_model, peft_adapter) -> None:
    server = Recorded(live)
    sides = [Side("one", {"name": "one", "scale": 0.1}), Side("two", "two"), Side("base", None)]
    result = compare(server, sides, PROMPTS, TOKENS, seed=3)  # type: ignore[arg-type]
    oracle = PeftOracle(tiny_model("llama"))
    adapters: dict[str, Adapters] = {
        "one": [(peft_adapter("llama", "plain"), 0.1)],
        "two": [(peft_adapter("llama", "plain", seed=1), 1.0)],
        "base": [],
    }
    names = {json.dumps(side.spec): side.label for side in sides}
    exact: dict[tuple[str, str], list[float]] = {}
    changed: dict[tuple[str, str], list[bool]] = {}
    for asked, answer in server.answers:
        side = names[json.dumps(asked["adapter"])]
        prompt, ids = (
            [token["id"] for token in answer["details"][part]] for part in ("prefill", "tokens")
        )
        tables = {
            name: oracle.logprobs(spec, prompt + ids)[len(prompt) - 1 : -1]
            for name, spec in adapters.items()
        }
        for other in adapters:
            p, q = tables[side], tables[other]
            if "seed" in asked["parameters"]:
                kl = (p.exp() * (p - q)).sum(dim=-1)
                exact.setdefault((side, other), []).extend(kl.tolist())
            else:
                differs = q.argmax(dim=-1) != torch.tensor(ids)
                changed.setdefault((side, other), []).extend(differs.tolist())
    pairs = [(divergence.side, divergence.other) for divergence in result.divergences]
    assert pairs == [("one", "two"), ("two", "one"), ("one", "base"), ("two", "base")]
    for divergence in result.divergences:
        pair = (divergence.side, divergence.other)
        assert (divergence.changed, divergence.greedy) == (sum(changed[pair]), len(changed[pair]))
        truth = sum(exact[pair]) / len(exact[pair])
        assert divergence.tokens == len(exact[pair])
        assert divergence.error is not None
        assert abs(divergence.kl - truth) < 4 * divergence.error
        assert divergence.error < 0.5 * truth, "too little to tell it from anything"


def test_the_base_is_the_third_unless_it_is_one_of_two(run) -> None:
    names = [(one["side"], one["other"]) for one in run("one", "two")["drifts"]]
    assert names == [("one", "two"), ("two", "one"), ("one", "base"), ("two", "base")]
    answer = run("base", "one@1:0.5")
    names = [(one["side"], one["other"]) for one in answer["drifts"]]
    assert names == [("base", "one@1:0.5"), ("one@1:0.5", "base")]
    assert len(answer["answers"]) == len(PROMPTS)
    assert answer["answers"][0]["answers"].keys() == {"base", "one@1:0.5"}


def test_a_scale_of_zero_is_the_base(run) -> None:
    for divergence in run("one:0", "base")["drifts"]:
        assert divergence["kl"] == pytest.approx(0, abs=1e-4)
        assert divergence["changed"] == 0


def test_a_seed_decides(run) -> None:
    first, again, other = (run("one", "base", "--seed", seed) for seed in (1, 1, 2))
    kls = [[one["kl"] for one in answer["drifts"]] for answer in (first, again, other)]
    assert kls[0] == pytest.approx(kls[1], abs=1e-4)
    assert kls[0] != pytest.approx(kls[2], abs=1e-4)


def test_people_see_a_table_and_texts(
    live: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "How do I"}\n"Ahoy"\n{"inputs": "What is"}\n')
    words = ["adapters", "compare", "one", "base", "--prompts", str(file), "--url", live.url]
    assert main([*words, "--tokens", "3", "--show", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("what this says")
    assert sum(line.startswith("prompt") for line in lines) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["one", "one"], 2, "the same"),
        (["one", "base:0.5"], 2, "no scale"),
        (["one:1x", "base"], 2, "'1x' is no number"),
        (["one:much", "base"], 1, "one:much"),
        (["one", "nobody"], 1, "nobody"),
        (["one:17", "base"], 1, "16"),
    ],
    ids=["same", "scaled base", "no number", "a name with a colon", "unknown", "beyond the limit"],
)
def test_a_mistake_is_one_line(arguments: list[str], code: int, said: str, live, capsys) -> None:
    words = ["adapters", "compare", *arguments, "--prompts", __file__, "--url", live.url]
    assert main([*words, "--tokens", "1", "--json"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"\n \n"), ("a.jsonl", b"{}\n"), ("a.jsonl", b"no json\n"), ("a.txt", b"\xff")],
    ids=["empty", "no prompt", "no JSON", "no text"],
)
def test_prompts_that_are_none_are_refused(name: str, content: bytes, run, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert name in run("one", "base", prompts=file, code=1)
