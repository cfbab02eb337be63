"""An adapter's own chat template, end token, added tokens, defaults and labels: used for it, and
for nobody beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.counted import counts
from api.live import Live, refused, serve
from lorry.engine import constraints
from lorry.settings import Settings
from support.tokenizer import EOS, build_tokenizer

TEXT = "How do I cook rice?"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}({{ m.role }}) {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}(me){% endif %}"
)
RENDERED = f"<s>(user) {TEXT}(me)"
ASKED = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def folder_of(
    peft_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`folder_of(file=content, ...)`: the adapter `pirate` with files beside it."""

    def make(files: dict[str, Any]) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        shutil.copytree(peft_adapter("llama", "plain", seed=1), folder, dirs_exist_ok=True)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
        return folder

    return make


@pytest.fixture(scope="module")
def worded(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    folder_of: Callable[..., Path],
    zip_of: Callable[..., Path],
    archives: Callable[[int], Path],
) -> Iterator[Live]:
    """A server with `plain`, and the same weights with words of its own under other names."""
    tokenizer = build_tokenizer(add_bos=True)
    tokenizer.chat_template = TEMPLATE
    saved = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(saved)
    files = {file.name: file.read_text() for file in saved.iterdir()}
    made = {
        "whole": files,
        "template": {"chat_template.jinja": TEMPLATE},
        "greedy": {"generation_config.json": {"do_sample": True, "temperature": 0.01, "top_k": 1}},
        "loops": {
            "chat_template.jinja": "{% for a in range(99999) %}{% for b in range(99999) %}x"
            "{% endfor %}{% endfor %}"
        },
        "broken": {"chat_template.jinja": "{% if"},
        "divides": {"chat_template.jinja": "{{ 1 // 0 }}"},
        "far": {"added_tokens.json": {"<|far|>": 10**6}, "tokenizer_config.json": "no JSON"},
    }
    with serve(settings_for(tmp_path_factory.mktemp("home"))) as live:
        assert live.upload("plain", archives(1)).status_code == 201
        assert live.upload("other", archives(2)).status_code == 201
        for name, beside in made.items():
            answer = live.upload(name, zip_of(folder_of(beside)))
            assert answer.status_code == 201, answer.text
        yield live


def chat(live: Live, model: Any, **body: Any) -> dict[str, Any]:
    chosen = {"model": model} if isinstance(model, str) else {"adapter": model}
    messages = [{"role": "user", "content": TEXT}]
    body = {**chosen, "messages": messages, **ASKED, **body}
    answer = live.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def completed(live: Live, model: str, prompt: str, **body: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, **ASKED, **body}
    answer = live.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["whole", "template"])
def test_a_chat_is_rendered_by_its_own_template(worded: Live, name: str) -> None:
    found = chat(worded, name)
    expected = completed(worded, "plain", RENDERED)
    assert said(found) == expected["choices"][0]["text"]
    assert found["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]
    assert found["adapters"][0]["words"] == "adapter"


@pytest.mark.parametrize("name", ["return_dict", "padding", "tokenize", "tokenizer_kwargs"])
@pytest.mark.parametrize("model", ["tiny", "greedy", "template"])
def test_what_transformers_takes_is_no_variable(worded: Live, model: str, name: str) -> None:
    body: dict[str, Any] = {"model": model, "chat_template_kwargs": {name: True}}
    body["messages"] = [{"role": "user", "content": TEXT}]
    error = refused(worded.http.post("/v1/chat/completions", json=body), 400, "invalid_request")
    assert error["param"] == "chat_template_kwargs"


def test_others_keep_the_bases(worded: Live) -> None:
    before = chat(worded, "plain")
    chat(worded, "template")
    after = chat(worded, "plain")
    assert said(after) == said(before) and counts(after) == counts(before)
    assert "words" not in after["adapters"][0]
    assert before["usage"]["prompt_tokens"] != chat(worded, "template")["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "spec",
    [
        [{"name": "template", "scale": 1.0}, {"name": "other", "scale": 0.5}],
        {"name": "template", "scale": 0},
    ],
    ids=["a sum", "at strength zero"],
)
def test_a_sum_and_strength_zero_have_the_bases_and_say_so(worded: Live, spec: Any) -> None:
    found = chat(worded, spec)
    base = chat(worded, "tiny")
    assert found["usage"]["prompt_tokens"] == base["usage"]["prompt_tokens"]
    assert found["adapters"][0]["words"] == "base"


def test_a_record_says_what_was_found_and_what_is_not_used(worded: Live) -> None:
    whole = worded.http.get("/adapters/whole").json()
    assert whole["words"] == ["chat_template", "end_tokens", "added_tokens"]
    assert whole["words_left_out"] == []
    far = worded.http.get("/adapters/far").json()
    assert far["words"] == ["added_tokens"]
    assert "<|far|>" in far["words_left_out"][0]
    assert any("tokenizer_config.json is not used" in one for one in far["warnings"])
    assert worded.http.get("/adapters/plain").json()["words"] == []


def test_a_template_that_does_not_end_is_ended(worded: Live) -> None:
    body = {"model": "loops", "messages": [{"role": "user", "content": TEXT}], **ASKED}
    error = refused(worded.http.post("/v1/chat/completions", json=body), 400, "invalid_request")
    assert error["message"].startswith("messages: the chat template takes more than 2 s")
    assert said(chat(worded, "template"))


@pytest.mark.parametrize("name", ["broken", "divides"])
def test_a_template_that_is_none_is_named(worded: Live, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": TEXT}], **ASKED}
    error = refused(worded.http.post("/v1/chat/completions", json=body), 400, "invalid_request")
    assert error["message"].startswith("messages: the adapter's chat template refuses them")


def test_its_defaults_hold_where_a_request_says_nothing(worded: Live) -> None:
    asked = {"prompt": TEXT, "max_tokens": 8, "seed": 5}
    greedy = completed(worded, "plain", TEXT)["choices"][0]["text"]

    def drawn(model: str, **body: Any) -> str:
        answer = worded.http.post("/v1/completions", json={"model": model, **asked, **body})
        return str(answer.json()["choices"][0]["text"])

    assert drawn("greedy") == greedy
    assert drawn("greedy", temperature=1.0, top_k=0) == drawn("plain")
    inputs = {"inputs": TEXT, "adapter": "greedy", "parameters": {"max_new_tokens": 8, "seed": 5}}
    assert worded.http.post("/generate", json=inputs).json()["generated_text"] == greedy


def end_by(live: Live, model: str, text: str) -> str:
    """Of an answer that has room for one token, which that `text` is made to be."""
    token = build_tokenizer(add_bos=True).convert_tokens_to_ids(text)
    answer = completed(live, model, TEXT, max_tokens=1, logit_bias={str(token): 100})
    return str(answer["choices"][0]["finish_reason"])


def test_its_end_token_ends_its_answers_alone(
    worded: Live, folder_of: Callable[..., Path], zip_of: Callable[..., Path]
) -> None:
    beside = {"tokenizer_config.json": {"eos_token": "<|im_end|>"}}
    assert worded.upload("ends", zip_of(folder_of(beside))).status_code == 201
    assert end_by(worded, "ends", "<|im_end|>") == "stop"
    assert end_by(worded, "ends", "</s>") == "stop"
    assert end_by(worded, "plain", "<|im_end|>") == "length"
    assert end_by(worded, "plain", "</s>") == "stop"
    beside = {"generation_config.json": {"eos_token_id": [4, EOS, 10**6]}}
    made = worded.upload("numbers", zip_of(folder_of(beside))).json()
    assert end_by(worded, "numbers", "<|im_end|>") == "stop"
    assert made["words_left_out"][0].startswith("end token 1000000")
    # A grammar ends with it, too.
    token = build_tokenizer(add_bos=True).convert_tokens_to_ids("<|im_end|>")
    found = completed(
        worded,
        "ends",
        TEXT,
        logit_bias={str(token): 100},
        response_format={"type": "regex", "value": "[ab]*"},
    )
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == 1


def test_grammars_of_many_end_tokens(
    worded: Live,
    folder_of: Callable[..., Path],
    zip_of: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constraints, "_COMPILERS", 1)
    for name, end in (("first", "<|im_end|>"), ("second", "<|im_start|>")):
        beside = {"tokenizer_config.json": {"eos_token": end}}
        assert worded.upload(name, zip_of(folder_of(beside))).status_code == 201
    # The one that made room is asked again, with a grammar that nobody compiled before.
    for number, name in enumerate(("first", "second", "first", "second"), start=1):
        grammar = {"type": "regex", "value": f"[ab]{{{number}}}"}
        answer = completed(worded, name, TEXT, response_format=grammar, max_tokens=9)
        assert len(answer["choices"][0]["text"]) == number


def test_an_added_token_is_one_token_for_it_alone(
    worded: Live,
    folder_of: Callable[..., Path],
    zip_of: Callable[..., Path],
) -> None:
    beside = {"added_tokens.json": {"<|act|>": 3}}
    made = worded.upload("renamed", zip_of(folder_of(beside))).json()
    assert made["words"] == ["added_tokens"] and made["words_left_out"] == []
    prompt = f"{TEXT}<|act|>"

    def ids(model: str) -> list[int]:
        body = {"inputs": prompt, "adapter": model, "parameters": {"decoder_input_details": True}}
        details = worded.http.post("/generate", json=body).json()["details"]
        return [one["id"] for one in details["prefill"]]

    assert ids("renamed")[-1] == 3
    assert 3 not in ids("plain")


def test_the_files_come_back_and_are_the_same_again(worded: Live, tmp_path: Path) -> None:
    record = worded.http.get("/adapters/whole").json()
    tar = tmp_path / "whole.tar"
    tar.write_bytes(worded.http.get("/adapters/whole/content").content)
    again = worded.upload("again", tar)
    assert again.status_code == 201, again.text
    assert again.json()["digest"] == record["digest"]
    assert said(chat(worded, "again")) == said(chat(worded, "whole"))
    plain = worded.http.get("/adapters/plain").json()
    assert plain["digest"] != record["digest"]


def test_a_new_version_speaks_with_its_own(
    worded: Live, folder_of: Callable[..., Path], zip_of: Callable[..., Path]
) -> None:
    first = zip_of(folder_of({"chat_template.jinja": "one"}))
    second = zip_of(folder_of({"chat_template.jinja": "one and two"}))
    assert worded.upload("versions", first).status_code == 201
    one = chat(worded, "versions")["usage"]["prompt_tokens"]
    assert worded.upload("versions", second, replace="true").status_code == 201
    two = chat(worded, "versions")["usage"]["prompt_tokens"]
    assert two > one
    assert chat(worded, "versions@1")["usage"]["prompt_tokens"] == one


def test_a_base_without_a_template_chats_by_the_adapters(
    worded: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worded.server.tokenizer, "chat_template", None)
    body = {"model": "plain", "messages": [{"role": "user", "content": TEXT}], **ASKED}
    assert worded.http.post("/v1/chat/completions", json=body).status_code == 400
    assert said(chat(worded, "template"))


def test_they_can_be_ignored(
    tmp_path: Path,
    settings_for: Callable[..., Settings],
    folder_of: Callable[..., Path],
    zip_of: Callable[..., Path],
) -> None:
    settings = settings_for(tmp_path, adapter_templates="ignore")
    with serve(settings) as live:
        made = live.upload("own", zip_of(folder_of({"chat_template.jinja": TEMPLATE}))).json()
        assert made["words"] == ["chat_template"]
        assert made["words_left_out"] == ["chat_template: --adapter-templates is ignore"]
        found = chat(live, "own")
        assert found["usage"]["prompt_tokens"] == chat(live, "tiny")["usage"]["prompt_tokens"]
        assert "words" not in found["adapters"][0]
