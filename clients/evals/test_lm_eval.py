"""EleutherAI's `lm-eval`: scoring, generation and perplexity over OpenAI's routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

BASE, ADAPTER = "smollm2-135m", "pirate"
DOCUMENTS = [
    {"question": "The capital of France is", "choices": ["Paris", "Rome"], "answer": 0},
    {"question": "Two and two are", "choices": ["nine", "four"], "answer": 1},
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """Three tasks on two documents, which need no network."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    asked = {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}"}
    kinds: dict[str, dict[str, Any]] = {
        "choosing": {"output_type": "multiple_choice", **asked, "doc_to_target": "{{answer}}"},
        "writing": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match"}],
        },
        "rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
    }
    for name, kind in kinds.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **shared, **kind}))
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture
def evaluate(url: str, tasks: TaskManager, tmp_path: Path) -> Any:
    def run(task: str, model: str = BASE, kind: str = "local-completions", **more: Any) -> Any:
        route = "chat/completions" if kind == "local-chat-completions" else "completions"
        where = {"model": model, "base_url": f"{url}/v1/{route}", "num_concurrent": 1}
        where |= {"tokenizer_backend": "remote", "max_length": 2048, "max_retries": 1}
        found = lm_eval.simple_evaluate(
            kind,
            model_args={**where, **more.pop("model_args", {})},
            tasks=[task],
            task_manager=tasks,
            log_samples=True,
            **more,
        )
        return found["results"][task], found["samples"][task]

    return run


def test_scoring(evaluate: Any) -> None:
    results, samples = evaluate("choosing")
    assert 0 <= results["acc,none"] <= 1
    likely = [[answer[0][0] for answer in sample["resps"]] for sample in samples]
    assert all(score < 0 for scores in likely for score in scores)


def test_perplexity(evaluate: Any) -> None:
    results, _ = evaluate("rolling")
    assert results["word_perplexity,none"] > 1


def test_completion(evaluate: Any) -> None:
    _, samples = evaluate("writing")
    assert all(isinstance(sample["resps"][0][0], str) for sample in samples)


def test_chat(evaluate: Any) -> None:
    _, samples = evaluate(
        "writing",
        kind="local-chat-completions",
        apply_chat_template=True,
        model_args={"tokenizer_backend": None},
    )
    assert all(sample["resps"][0][0] for sample in samples)


def test_adapter(evaluate: Any) -> None:
    _, base = evaluate("choosing")
    _, pirate = evaluate("choosing", ADAPTER)
    assert base[0]["resps"] != pirate[0]["resps"]
