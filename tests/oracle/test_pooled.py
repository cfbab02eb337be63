"""Labels and vectors against transformers and PEFT: the same weights in their own classes.

A step is short, so prompts go in chunks; half of the requests run while others generate.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification

from api.live import Live, serve
from lorry.settings import Settings
from support.peft_adapters import fill, pack
from support.prompts import random_prompt

FAMILIES = ("llama", "qwen2", "gpt2", "gemma2", "gptj")
TOLERANCE = 1e-4
PROMPTS = [random_prompt(length, seed=length) for length in (1, 9, 40)]
LABELS = 3
OWN_CLASS = {
    "SEQ_CLS": (AutoModelForSequenceClassification, {"num_labels": LABELS, "pad_token_id": 0}),
    "FEATURE_EXTRACTION": (AutoModel, {}),
}


def make(task: str, family: str, folder: Path, into: Path) -> PeftModel:
    """A tiny model in transformers' own class for the task, adapted, saved, still in hand."""
    torch.manual_seed(5)
    kind, more = OWN_CLASS[task]
    base = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **more)
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
    config = LoraConfig(
        task_type=task, r=4, target_modules=targets, fan_in_fan_out=family == "gpt2"
    )
    model = get_peft_model(base, config)
    fill(model, seed=3)
    model.save_pretrained(into, save_embedding_layers=False)
    return model.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(
    family: str, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, PeftModel]]:
    root = tmp_path_factory.mktemp("pooled-adapters")
    return {
        task: (root / task, make(task, family, tiny_model(family), root / task))
        for task in OWN_CLASS
    }


@pytest.fixture(scope="module")
def live(
    family: str,
    made: dict[str, tuple[Path, PeftModel]],
    tiny_model: Callable[[str], Path],
    peft_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("pooled")
    settings = Settings(
        model=str(tiny_model(family)),
        home=home,
        device="cpu",
        dtype="float32",
        quantize="none",
        kv_cache_memory=4 << 20,
        samples=False,
        max_num_seqs=8,
        max_num_batched_tokens=16,
    )
    with serve(settings) as served:
        for task, (folder, _) in made.items():
            served.upload(task, pack(folder, home / f"{task}.zip")).raise_for_status()
        plain = peft_adapter(family, "plain")
        served.upload("plain", pack(plain, home / "plain.zip")).raise_for_status()
        yield served


def ask(live: Live, path: str, **body: Any) -> httpx.Response:
    return live.http.post(path, json=body)


def in_company(live: Live, work: Callable[[], Any]) -> Any:
    """`work` while others generate with the plain adapter and the base."""
    with ThreadPoolExecutor(2) as pool:
        others = [
            pool.submit(live.generate, adapter=adapter, parameters={"max_new_tokens": 20})
            for adapter in ("plain", None)
        ]
        found = work()
        for other in others:
            other.result()
    return found


@torch.inference_mode()
def scores(model: PeftModel, ids: Sequence[int]) -> list[float]:
    ids_T = torch.tensor([list(ids)])
    return model(input_ids=ids_T, attention_mask=torch.ones_like(ids_T)).logits[0].tolist()  # type: ignore[no-any-return]


@torch.inference_mode()
def hidden(model: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    ids_T = torch.tensor([list(ids)])
    found: torch.Tensor = model(input_ids=ids_T, attention_mask=torch.ones_like(ids_T))[0][0]
    return found


def close(found: Sequence[float], expected: Sequence[float]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in pairs)


def test_labels(live: Live, made: dict[str, tuple[Path, PeftModel]]) -> None:
    def work() -> dict[str, Any]:
        answer = ask(live, "/classify", inputs=PROMPTS, adapter="SEQ_CLS", raw_scores=True)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    for found in (work(), in_company(live, work)):
        assert found["adapters"][0]["name"] == "SEQ_CLS"
        for ids, predictions in zip(PROMPTS, found["predictions"], strict=True):
            by_label = {one["label"]: one["score"] for one in predictions}
            expected = scores(made["SEQ_CLS"][1], ids)
            assert close([by_label[f"LABEL_{i}"] for i in range(LABELS)], expected)
            assert [one["score"] for one in predictions] == sorted(by_label.values(), reverse=True)


def test_probabilities(live: Live, made: dict[str, tuple[Path, PeftModel]]) -> None:
    found = ask(live, "/classify", inputs=PROMPTS[1], adapter="SEQ_CLS").json()["predictions"]
    expected = torch.tensor(scores(made["SEQ_CLS"][1], PROMPTS[1])).softmax(-1).tolist()
    by_label = {one["label"]: one["score"] for one in found}
    assert close([by_label[f"LABEL_{i}"] for i in range(LABELS)], expected)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("adapter", ["FEATURE_EXTRACTION", None])
def test_vectors(
    live: Live, made: dict[str, tuple[Path, PeftModel]], pooling: str, adapter: str | None
) -> None:
    model = made["FEATURE_EXTRACTION"][1]

    def work() -> dict[str, Any]:
        answer = ask(
            live,
            "/v1/embeddings",
            input=PROMPTS,
            adapter=adapter,
            pooling=pooling,
            normalize=False,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    for found in (work(), in_company(live, work)):
        assert found["usage"]["prompt_tokens"] == sum(map(len, PROMPTS))
        for ids, one in zip(PROMPTS, found["data"], strict=True):
            if adapter is None:
                with model.disable_adapter():
                    hidden_TH = hidden(model, ids)
            else:
                hidden_TH = hidden(model, ids)
            expected = hidden_TH[-1] if pooling == "last" else hidden_TH.mean(0)
            assert close(one["embedding"], expected.tolist())


def test_normalized_base64(live: Live) -> None:
    body = {"input": PROMPTS[1], "model": "FEATURE_EXTRACTION"}
    whole = ask(live, "/v1/embeddings", **body).json()["data"][0]["embedding"]
    assert math.isclose(sum(value * value for value in whole), 1.0, rel_tol=1e-6)
    coded = ask(live, "/v1/embeddings", **body, encoding_format="base64").json()["data"][0]
    data = base64.b64decode(coded["embedding"])
    assert close(struct.unpack(f"<{len(data) // 4}f", data), whole)


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/classify", {"inputs": "a", "adapter": "plain"}, 422, "names 'plain' (CAUSAL_LM)"),
        ("/classify", {"inputs": "a"}, 422, "names none"),
        ("/classify", {"inputs": "a", "adapter": {"name": "SEQ_CLS", "scale": 0}}, 422, "scale"),
        ("/classify", {"inputs": "a", "adapter": "nobody"}, 404, "nobody"),
        ("/classify", {"inputs": "", "adapter": "SEQ_CLS"}, 422, "empty"),
        ("/classify", {"inputs": "a", "adapter": "SEQ_CLS", "adapter_id": "x"}, 422, "different"),
        ("/v1/embeddings", {"input": "a", "adapter": "SEQ_CLS"}, 400, "/classify"),
        ("/v1/embeddings", {"input": "a", "model": "nobody"}, 404, "nobody"),
        ("/v1/embeddings", {"input": "a", "dimensions": 10**6}, 400, "dimensions"),
        ("/v1/completions", {"prompt": "a", "adapter": "SEQ_CLS"}, 400, "/classify"),
        ("/v1/completions", {"prompt": "a", "adapter": "FEATURE_EXTRACTION"}, 400, "embeddings"),
    ],
)
def test_the_wrong_route_is_refused_by_name(
    live: Live, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    answer = ask(live, path, **body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]


def test_a_sum_of_a_classifier_and_a_plain_adapter(live: Live) -> None:
    one = ask(live, "/classify", inputs="a b c", adapter="SEQ_CLS", raw_scores=True).json()
    both = ask(live, "/classify", inputs="a b c", adapter=["SEQ_CLS", "plain"], raw_scores=True)
    assert both.status_code == 200, both.text
    assert both.json()["predictions"] != one["predictions"]
