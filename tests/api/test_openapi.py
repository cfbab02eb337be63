"""The OpenAPI document keeps its word: every field, every status, every header."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import booleans

from api.declared import Declared
from api.live import Live, serve
from lorry.settings import Settings
from support.patience import PATIENCE

OPEN = {
    # JSON schemas, and what follows one.
    *("parameters", "input_schema", "schema", "arguments", "input", "guided_json"),
    *("json", "value"),
    # A template's own variables, and a client's own notes.
    *("chat_template_kwargs", "metadata", "annotations"),
}
"""Fields whose objects have any keys."""

CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)

EXAMPLES = 8
"""Requests to each operation that fit the document, and as many that do not."""


def test_only_what_is_a_client_s_own_has_any_keys(live: Live) -> None:
    schemas = live.http.get("/openapi.json").json()["components"]["schemas"]
    found: set[str] = set()

    def look(schema: Any, where: str, field: str) -> None:
        if isinstance(schema, list):
            for one in schema:
                look(one, where, field)
        if not isinstance(schema, dict):
            return
        anything = schema.get("additionalProperties", True) is True
        if schema.get("type") == "object" and "properties" not in schema and anything:
            found.add(f"{where}.{field}")
        for name, one in schema.get("properties", {}).items():
            look(one, where, name)
        for key in ("anyOf", "oneOf", "allOf", "items", "prefixItems", "additionalProperties"):
            look(schema.get(key), where, field)

    for name, schema in schemas.items():
        look(schema, name, "")
    assert {one for one in found if one.partition(".")[2] not in OPEN} == set()


CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Ahoy"}],
    [{"role": "developer", "content": [{"type": "text", "text": "Be short."}]}],
    [{"role": "user", "content": [{"type": "input_text", "text": "Ahoy"}], "name": "Ann"}],
    [
        {"role": "user", "content": "Ahoy"},
        {"role": "assistant", "content": None, "refusal": "No.", "tool_calls": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "reasoning_content": "Hm.", "content": "Ahoy!"},
        {"role": "user", "content": ""},
    ],
    [
        {"role": "user", "content": "Add"},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "a",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": 1}'},
                },
                {"function": {"name": "add", "arguments": {"a": 1}}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "content": [{"type": "text", "text": "1"}]},
    ],
    [
        {"role": "user", "content": "Add"},
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "add", "arguments": "{}"},
        },
        {"role": "function", "name": "add", "content": "1"},
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_every_message_that_is_taken_is_shown(live: Live, messages: list[dict[str, Any]]) -> None:
    document = live.http.get("/openapi.json").json()
    answer = live.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert answer.status_code == 200, answer.text
    shown = document["components"]["schemas"]["ChatBody"]["properties"]["messages"]
    assert Declared(document).misfits(messages, shown, "messages") == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": ""}),
        ("/embed", {"inputs": []}),
        ("/v1/completions", {"prompt": []}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/messages", {"messages": [], "max_tokens": 1}),
        ("/v1/messages/count_tokens", {"messages": []}),
        ("/tokenize", {"messages": []}),
        ("/v1/embeddings", {"input": []}),
        ("/classify", {"inputs": []}),
        ("/score", {"text_1": "x", "text_2": []}),
        ("/rerank", {"query": "x", "documents": []}),
        ("/rerank", {"query": "x", "texts": []}),
    ],
)
def test_what_may_not_be_empty_is_shown_so(live: Live, path: str, body: dict[str, Any]) -> None:
    document = live.http.get("/openapi.json").json()
    assert live.http.post(path, json=body).status_code in (400, 404, 422)
    media = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    kind = document["components"]["schemas"][media["schema"]["$ref"].rpartition("/")[2]]
    (field,) = (name for name, value in body.items() if value in ("", []))
    shown = kind["properties"][field]
    options = [one for one in shown.get("anyOf", [shown]) if one["type"] in ("array", "string")]
    least = {"array": "minItems", "string": "minLength"}
    emptied = "string" if body[field] == "" else "array"
    assert options and all(one[least[emptied]] == 1 for one in options if one["type"] == emptied)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/detokenize", {"tokens": [-1]}),
        ("/rerank", {"query": "x"}),
        ("/v1/responses", {}),
        ("/v1/completions", {"prompt": [-1]}),
        ("/v1/completions", {"prompt": "x", "stop_token_ids": [-1]}),
        ("/v1/completions", {"prompt": "x", "bad_words": [" "]}),
        ("/generate", {"inputs": "x", "adapter": ""}),
        ("/generate", {"inputs": "x", "adapter": "legal@"}),
        ("/generate", {"inputs": "x", "adapter": "legal@0"}),
        ("/generate", {"inputs": "x", "adapter": [{"name": ""}]}),
        ("/adapters", {"name": "a b", "source": "/srv/a"}),
        ("/adapters", {"name": "a", "source": "./a"}),
        ("/v1/load_lora_adapter", {"lora_name": "a"}),
        ("/v1/unload_lora_adapter", {}),
    ],
)
def test_a_form_that_is_refused_is_shown_as_wrong(
    live: Live, path: str, body: dict[str, Any]
) -> None:
    from jsonschema_rs import validator_for

    document = live.http.get("/openapi.json").json()
    assert live.http.post(path, json=body).status_code in (400, 403, 422)
    media = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    validator = validator_for({**media["schema"], "components": document["components"]})
    assert not validator.is_valid(body)
    assert validator.is_valid(media["example"])


def test_a_version_may_be_written_as_any_number_of_json(live: Live) -> None:
    spec = {"name": "pirate", "version": 1.0}
    assert live.generate(adapter=spec)["adapters"][0]["version"] == 1


@pytest.fixture
def tried(
    tmp_path: Path, settings_for: Callable[..., Settings], archives: Callable[[int], Path]
) -> Iterator[Live]:
    # With a key: otherwise a request that makes the first one would lock out all that follow.
    with serve(settings_for(tmp_path / "home", api_key="s3cret")) as one:
        assert one.upload("pirate", archives(1)).status_code == 201
        yield one


def test_generated_requests_get_what_is_declared(
    tried: Live, archives: Callable[[int], Path]
) -> None:
    """Schemathesis makes requests of the document, right ones and wrong ones."""
    # It takes a while to load, which those who run other tests need not wait for.
    import schemathesis
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    stored = tried.http.post("/v1/responses", json={"input": "Ahoy", "max_output_tokens": 1}).json()
    known = {"name": "pirate", "model": "pirate", "response_id": stored["id"]}
    document = tried.http.get("/openapi.json").json()
    seen: Counter[tuple[str, bool]] = Counter()
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:
            if mode.is_negative and not (operation.body or operation.query):
                # Nothing of the request can be wrong.
                continue
            # An earlier request may have removed it.
            assert tried.upload("pirate", archives(1)).status_code in (200, 201)
            key = {"name": "pirate", "scopes": ["generate"]}
            assert tried.http.post("/keys", json=key).status_code in (201, 409)
            for answer in answers(
                tried,
                operation.as_strategy(generation_mode=mode),
                known,
                [CHECKS.get_one(name) for name in CHECKED],
            ):
                seen[f"{operation.method.upper()} {operation.path}", answer < 300] += 1
    assert sum(served for _, served in seen) > 20, seen


def answers(tried: Live, cases: Any, known: dict[str, str], checks: list[Any]) -> list[int]:
    """The statuses that requests got. Half of those for a thing by its name are for one of the
    `known`."""
    seen: list[int] = []

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, there=booleans())
    def ask(case: Any, there: bool) -> None:
        named = case.path_parameters if there else {}
        named.update({key: known[key] for key in named.keys() & known.keys()})
        headers = {"Authorization": tried.http.headers["Authorization"]}
        answer = case.call(base_url=tried.url, headers=headers, timeout=PATIENCE)
        seen.append(answer.status_code)
        case.validate_response(answer, checks=checks)

    ask()
    return seen
