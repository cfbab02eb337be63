"""Scores of pairs against transformers and PEFT: the same weights in their own class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from api.live import Live, refused, serve
from lorry.settings import Settings
from support.peft_adapters import fill, pack

QUERY = "How do I cook rice?"
DOCUMENTS = ["Boil it in water.", "The harbour was quiet.", "rice"]


def classifier(folder: Path, into: Path, labels: int) -> PeftModel:
    torch.manual_seed(5)
    base = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        num_labels=labels,
        pad_token_id=0,
    )
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, config)
    fill(model, seed=3)
    model.save_pretrained(into, save_embedding_layers=False)
    return model.eval()


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> PeftModel:
    return classifier(tiny_model("llama"), tmp_path_factory.mktemp("adapters") / "relevance", 1)


@pytest.fixture(scope="module")
def live(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """With `relevance`, which has one label, and `tickets`, which has three."""
    root = tmp_path_factory.mktemp("scores")
    settings = Settings(
        model=str(tiny_model("llama")),
        home=root / "home",
        device="cpu",
        dtype="float32",
        quantize="none",
        kv_cache_memory=4 << 20,
        samples=False,
    )
    with serve(settings) as served:
        for name, labels in (("relevance", 1), ("tickets", 3)):
            classifier(tiny_model("llama"), root / name, labels)
            served.upload(name, pack(root / name, root / f"{name}.zip")).raise_for_status()
        yield served


@torch.inference_mode()
def expected(live: Live, model: PeftModel, query: str, document: str) -> float:
    """The head's own number for the pair that the tokenizer makes of them."""
    ids = live.server.tokenizer(query, document)["input_ids"]
    assert isinstance(ids, list)
    ids_T = torch.tensor([ids])
    found = model(input_ids=ids_T, attention_mask=torch.ones_like(ids_T)).logits[0, 0]
    return float(found)


def ask(live: Live, path: str, **body: Any) -> httpx.Response:
    return live.http.post(path, json={"model": "relevance", **body})


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_a_score_is_the_head_s_number_of_the_pair(live: Live, model: PeftModel, path: str) -> None:
    wanted = [expected(live, model, QUERY, one) for one in DOCUMENTS]
    raw = ask(live, path, text_1=QUERY, text_2=DOCUMENTS, use_activation=False).json()
    assert [one["score"] for one in raw["data"]] == pytest.approx(wanted, abs=1e-4)
    assert [one["index"] for one in raw["data"]] == [0, 1, 2]
    assert raw["adapters"][0]["name"] == "relevance" and raw["usage"]["prompt_tokens"] > 0
    shown = ask(live, path, text_1=QUERY, text_2=DOCUMENTS).json()["data"]
    sure = torch.tensor(wanted).sigmoid().tolist()
    assert [one["score"] for one in shown] == pytest.approx(sure, abs=1e-4)
    # One for each, and one for one.
    both = ask(live, path, text_1=[QUERY, "x"], text_2=DOCUMENTS[:2], use_activation=False).json()
    wanted = [wanted[0], expected(live, model, "x", DOCUMENTS[1])]
    assert [one["score"] for one in both["data"]] == pytest.approx(wanted, abs=1e-4)
    alone = ask(live, path, text_1=QUERY, text_2=DOCUMENTS[0]).json()
    assert len(alone["data"]) == 1


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_documents_come_best_first(live: Live, model: PeftModel, path: str) -> None:
    wanted = torch.tensor([expected(live, model, QUERY, one) for one in DOCUMENTS]).sigmoid()
    order = wanted.argsort(descending=True).tolist()
    mixed = [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]
    answer = ask(live, path, query=QUERY, documents=mixed).json()
    assert [one["index"] for one in answer["results"]] == order
    assert [one["document"]["text"] for one in answer["results"]] == [DOCUMENTS[i] for i in order]
    found = [one["relevance_score"] for one in answer["results"]]
    assert found == pytest.approx([wanted[i].item() for i in order], abs=1e-4)
    best = ask(live, path, query=QUERY, documents=DOCUMENTS, top_n=1, return_documents=False)
    (only,) = best.json()["results"]
    assert only["index"] == order[0] and "document" not in only
    # TEI's words.
    ranked = ask(live, path, query=QUERY, texts=DOCUMENTS, return_text=True).json()
    assert [(one["index"], one["text"]) for one in ranked] == [(i, DOCUMENTS[i]) for i in order]


def test_a_pair_may_be_cut(live: Live) -> None:
    short = {"truncate_prompt_tokens": 3, "text_1": QUERY, "text_2": DOCUMENTS[0]}
    assert ask(live, "/score", **short).json()["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/score", {"model": "tickets", "text_1": "a", "text_2": "b"}, 400, "tickets has 3 labels"),
        ("/v1/score", {"model": None, "text_1": "a", "text_2": "b"}, 400, "classifier"),
        ("/score", {"model": "nobody", "text_1": "a", "text_2": "b"}, 404, "nobody"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a"]}, 400, "text_1 has 2 texts"),
        ("/score", {"text_1": "a", "text_2": []}, 400, "text_2"),
        ("/rerank", {"query": "a", "documents": []}, 400, "documents"),
        ("/rerank", {"query": "a"}, 400, "documents is required"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, 400, "documents[0]"),
    ],
)
def test_what_has_no_score_is_refused(
    live: Live, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    answer = ask(live, path, **body)
    assert answer.status_code == status, answer.text
    assert says in refused(answer, status, answer.json()["error"]["code"])["message"]
