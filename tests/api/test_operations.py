"""Health, info, metrics, models, the documentation, unknown routes, a server that is full or
going down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.live import Live, serve
from lorry.settings import Settings
from support.patience import ENDLESS, PATIENCE, client, wait_until

PROMPT = "The lorry waited"


def test_health(live: Live) -> None:
    for path in ("/health", "/health/ready", "/health/live"):
        assert live.http.get(path).status_code == 200


def test_info(live: Live) -> None:
    info = live.http.get("/info").json()
    assert (info["model_id"], info["quantization"], info["max_total_tokens"]) == (
        "tiny",
        "none",
        512,
    )
    assert info["memory"]["kv_cache"] > 0 and info["kv_cache_dtype"] == "float32"
    assert info["limits"]["max_adapters_per_request"] == 8


def test_models(live: Live) -> None:
    models = live.http.get("/v1/models").json()
    assert models["object"] == "list"
    base, *adapters = models["data"]
    assert (base["id"], base["parent"], base["object"]) == ("tiny", None, "model")
    assert [(one["id"], one["parent"]) for one in adapters] == [
        ("legal", "tiny"),
        ("pirate", "tiny"),
    ]
    digest = live.http.get("/adapters/legal").json()["digest"]
    assert adapters[0]["root"] == digest
    assert live.http.get("/v1/models/legal").json() == adapters[0]
    assert live.http.get("/v1/models/tiny").json() == base
    unknown = live.http.get("/v1/models/gpt")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_unknown_routes_and_methods(live: Live) -> None:
    answer = live.http.get("/v2/models")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_such_route"
    answer = live.http.put("/v1/models", json={})
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "GET, HEAD"
    answer = live.http.get("/generate")
    assert (answer.status_code, answer.json()["error_type"]) == (405, "validation")


def values(live: Live) -> dict[str, float]:
    """Every sample, by its name and labels."""
    answer = live.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_count_what_was_done(live: Live) -> None:
    before = values(live)
    answer = live.generate(PROMPT, adapter=["pirate", "legal"])
    live.generate(PROMPT)
    live.http.post("/generate", json={"inputs": PROMPT, "adapter": "nobody"})
    after = values(live)

    def grown(name: str, **labels: str) -> float:
        key = f"{name}{sorted(labels.items())}"
        return after[key] - before.get(key, 0.0)

    prompt = answer["details"]["prompt_tokens"]
    engine = {"model_name": "tiny", "engine": "0"}
    assert grown("vllm:prompt_tokens_total", **engine) == 2 * prompt
    assert grown("vllm:generation_tokens_total", **engine) == 12
    assert grown("vllm:request_success_total", finished_reason="length", **engine) == 2
    assert grown("vllm:time_to_first_token_seconds_count", **engine) == 2
    assert grown("vllm:inter_token_latency_seconds_count", **engine) == 10
    assert grown("vllm:time_per_output_token_seconds_count", **engine) == 2
    assert grown("vllm:e2e_request_latency_seconds_count", **engine) == 2
    for part in ("queue", "prefill", "decode", "inference"):
        assert grown(f"vllm:request_{part}_time_seconds_count", **engine) == 2
    assert grown("vllm:request_inference_time_seconds_sum", **engine) > 0
    assert grown("vllm:iteration_tokens_total_sum", **engine) == 2 * (prompt + 5)
    assert grown("vllm:request_params_n_sum", **engine) == 2
    assert grown("lorry_refused_requests_total", code="unknown_adapter") == 1
    for name, version in (("pirate", "1"), ("legal", "1"), ("tiny", "")):
        labels = {"adapter": name, "version": version}
        assert grown("lorry_adapter_requests_total", finished_reason="length", **labels) == 1
        assert grown("lorry_adapter_prompt_tokens_total", **labels) == prompt
        assert grown("lorry_adapter_generated_tokens_total", **labels) == 6
        assert grown("lorry_adapter_time_to_first_token_seconds_count", **labels) == 1
        assert grown("lorry_adapter_time_per_token_seconds_count", **labels) == 1
        assert grown("lorry_adapter_errors_total", **labels) == 0
    assert not any("nobody" in key for key in after)


def test_metrics_of_the_engine(
    settings_for: Callable[..., Settings], archives: Callable[[int], Path], tmp_path: Path
) -> None:
    with serve(settings_for(tmp_path)) as own:
        for seed, name in ((1, "pirate"), (2, "legal")):
            assert own.upload(name, archives(seed)).status_code == 201
        own.generate(PROMPT, adapter=["pirate", "legal"])
        now = values(own)
    engine = "[('engine', '0'), ('model_name', 'tiny')]"
    for name, value in {
        f"vllm:num_requests_running{engine}": 0,
        f"vllm:num_requests_waiting{engine}": 0,
        f"vllm:kv_cache_usage_perc{engine}": 0,
        f"vllm:num_preemptions_total{engine}": 0,
        f"vllm:num_gpu_loaded_lora_adapters{engine}": 2,
        f"vllm:max_gpu_lora_adapters{engine}": 4,
        "lorry_slots[]": 4,
        "lorry_slots_used[]": 2,
        "lorry_adapter_loads_total[]": 2,
        "lorry_adapter_evictions_total[]": 0,
        "lorry_engine_failed_steps_total[]": 0,
        "lorry_adapters[('state', 'enabled')]": 2,
        "lorry_adapters[('state', 'disabled')]": 0,
        "lorry_host_cache_adapters[]": 2,
    }.items():
        assert now[name] == value, name
    assert now["lorry_engine_steps_total[]"] > 0
    assert now["lorry_host_cache_bytes[]"] > 0
    info = [key for key in now if key.startswith("vllm:lora_requests_info")]
    assert len(info) == 1
    assert "('running_lora_adapters', 'legal,pirate')" in info[0]
    assert "('max_lora', '4')" in info[0]


def test_the_documentation_names_every_status(live: Live) -> None:
    document = live.http.get("/openapi.json").json()
    paths = document["paths"]
    expected = {
        ("/generate", "post"): {
            *(200, 400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 507)
        },
        ("/v1/chat/completions", "post"): {
            *(200, 400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503, 507)
        },
        ("/adapters", "post"): {
            *(200, 201, 400, 401, 403, 408, 409, 413, 415, 422, 429, 500, 502, 503, 507)
        },
        ("/adapters/{name}", "put"): {
            *(200, 400, 401, 403, 404, 408, 409, 412, 413, 415, 422, 429, 500, 503, 507)
        },
        ("/adapters/{name}", "delete"): {204, 400, 401, 403, 404, 409, 422, 429, 500, 503, 507},
        ("/health", "get"): {200, 400, 403, 500, 503},
    }
    for (path, method), statuses in expected.items():
        assert {int(one) for one in paths[path][method]["responses"]} == statuses, path
    # Their clients know 400 for what a request got wrong.
    ours = [one for path in paths if path.startswith("/v1/") for one in paths[path].values()]
    assert not [one["summary"] for one in ours if "422" in one["responses"]]
    # Every reference leads somewhere.
    text = live.http.get("/openapi.json").text
    for part in text.split('"$ref":"#/components/schemas/')[1:]:
        assert part.split('"', 1)[0] in document["components"]["schemas"]
    body = paths["/generate"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].endswith("GenerateBody")
    top_p = document["components"]["schemas"]["Parameters"]["properties"]["top_p"]
    assert {"exclusiveMinimum": 0, "maximum": 1}.items() <= top_p["anyOf"][0].items()
    assert live.http.get("/docs").status_code == 200


def test_what_the_documentation_allows_is_not_refused_for_its_form(live: Live) -> None:
    """Generators of requests take the schemas at their word."""
    document = live.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["GenerateBody"]["properties"]["inputs"]["minLength"] == 1
    assert schemas["ChatBody"]["properties"]["messages"]["minItems"] == 1
    for kind, field in (("CompletionsBody", "prompt"), ("EmbeddingsBody", "input")):
        text, texts, ids, lists = schemas[kind]["properties"][field]["anyOf"]
        assert text["minLength"] == texts["items"]["minLength"] == 1
        assert all(one["minItems"] == 1 for one in (texts, ids, lists, lists["items"]))
    scale = {"type": "number", "minimum": -16, "maximum": 16}
    for kind in ("PatchBody", "SourceBody"):
        assert scale in schemas[kind]["properties"]["scale"]["anyOf"]
    form = document["paths"]["/adapters/{name}"]["put"]["requestBody"]["content"]
    assert form["multipart/form-data"]["schema"]["$ref"].endswith("/VersionForm")
    assert not schemas["VersionForm"]["properties"].keys() & {"scale", "enabled", "replace"}
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/generate",
        "/generate_stream",
    ):
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        event = content["text/event-stream"]["schema"]["properties"]
        assert event["data"]["contentSchema"]["$ref"].startswith("#/components/schemas/")
    vllm = live.http.post("/v1/load_lora_adapter", json={}).json()["error"]
    assert vllm.keys() == schemas["VllmErrorDetail"]["properties"].keys()
    kinds = {one["type"] for one in schemas["VllmErrorDetail"]["properties"]["code"]["anyOf"]}
    assert kinds == {"integer", "string"} and vllm["code"] == 400


def test_nothing_but_the_keys_of_the_answer_is_undocumented(live: Live) -> None:
    schemas = live.http.get("/openapi.json").json()["components"]["schemas"]

    def check(value: Any, schema: dict[str, Any], where: str) -> None:
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rpartition("/")[2]]
        if "anyOf" in schema:
            options = [one for one in schema["anyOf"] if one.get("type") != "null"]
            if value is None or len(options) != 1:
                return
            return check(value, options[0], where)
        if isinstance(value, list) and "items" in schema:
            for one in value:
                check(one, schema["items"], f"{where}[]")
        if isinstance(value, dict) and "properties" in schema:
            assert value.keys() <= schema["properties"].keys(), where
            assert set(schema.get("required", ())) <= value.keys(), where
            for key, one in value.items():
                check(one, schema["properties"][key], f"{where}.{key}")

    asked = {"best_of": 2, "temperature": 1, "top_n_tokens": 2, "decoder_input_details": True}
    check(
        live.generate(PROMPT, adapter="pirate", parameters=asked),
        schemas["GenerateAnswer"],
        "generate",
    )
    body: dict[str, Any] = {"prompt": PROMPT, "logprobs": 2, "model": "legal"}
    answer = live.http.post("/v1/completions", json=body).json()
    check(answer, schemas["CompletionAnswer"], "completions")
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "logprobs": True}
    answer = live.http.post("/v1/chat/completions", json=body).json()
    check(answer, schemas["ChatAnswer"], "chat")
    check(live.http.get("/adapters").json(), schemas["AdapterList"], "adapters")
    check(live.http.get("/v1/models").json(), schemas["ModelList"], "models")
    answer = live.http.post("/v1/completions", json={}).json()
    check(answer, schemas["ErrorBody"], "error")


def test_a_full_queue_is_429(
    tmp_path: Path, settings_for: Callable[..., Settings], long_model: Path
) -> None:
    settings = settings_for(
        tmp_path / "home",
        model=str(long_model),
        kv_cache_memory=64 << 20,
        max_queue=2,
        max_num_seqs=1,
    )
    short = {"inputs": PROMPT, "parameters": {"max_new_tokens": 2}}
    endless = {"inputs": PROMPT, "parameters": {"max_new_tokens": ENDLESS}}
    endless["parameters"]["ignore_eos_token"] = True
    with serve(settings) as own, ThreadPoolExecutor(2) as pool:
        with own.http.stream("POST", "/generate_stream", json=endless) as running:
            lines = running.iter_lines()  # kept: whoever drops it hangs up
            next(lines)
            waiting = [pool.submit(own.http.post, "/generate", json=short) for _ in range(2)]
            wait_until(lambda: own.server.client.stats.waiting == 2)
            refused = own.http.post("/generate", json=short)
        assert refused.status_code == 429
        assert refused.json()["error_type"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        # Who ran has left: those who waited are served.
        assert [one.result().status_code for one in waiting] == [200, 200]
        # All or nothing: five answers do not fit, and none is left behind.
        several = {"prompt": PROMPT, "n": 5, "max_tokens": 2}
        answer = own.http.post("/v1/completions", json=several)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert own.generate(PROMPT)["generated_text"]
        assert own.server.registry.open_leases() == 0


def test_a_server_that_goes_down(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    with serve(settings_for(tmp_path / "home")) as own:
        parameters = {"max_new_tokens": 400, "ignore_eos_token": True}
        body = {"inputs": PROMPT, "parameters": parameters}
        with own.http.stream("POST", "/generate_stream", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            # As SIGTERM does, in the server's own loop.
            loop = own.server.client._loop
            assert loop is not None
            drained = asyncio.run_coroutine_threadsafe(own.server.client.drain(PATIENCE), loop)
            with client(own.url) as other:
                refused = other.post("/generate", json={"inputs": PROMPT})
                while refused.status_code == 200:
                    refused = other.post("/generate", json={"inputs": PROMPT})
                assert refused.status_code == 503
                assert refused.json()["error_type"] == "overloaded"
                assert "retry-after" in refused.headers
                unready = other.get("/health")
                assert unready.status_code == 503
                assert int(unready.headers["retry-after"]) >= 1
                assert other.get("/health/ready").status_code == 503
                assert other.get("/health/live").status_code == 200
            count = sum(line.startswith("data:") for line in lines)
        assert count == 399
        assert drained.result(PATIENCE) is True


@pytest.mark.parametrize("stream", [True, False])
def test_the_grace_period_ends(
    tmp_path: Path, settings_for: Callable[..., Settings], long_model: Path, stream: bool
) -> None:
    home = tmp_path / "home"
    with serve(settings_for(home, model=str(long_model), kv_cache_memory=256 << 20)) as own:
        body = {
            "prompt": PROMPT,
            "max_tokens": ENDLESS,
            "ignore_eos": True,
            "stream": stream,
            "n": 8,
        }
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(own.http.post, "/v1/completions", json=body)
            wait_until(lambda: own.server.client.stats.running > 0)
            loop = own.server.client._loop
            assert loop is not None
            asyncio.run_coroutine_threadsafe(own.server.client.drain(0), loop).result(PATIENCE)
            done = answer.result()
        if stream:
            assert done.status_code == 200
            assert '"code":"shutting_down"' in done.text.split("\n\n")[-2]
        else:
            assert done.status_code == 503
            assert done.json()["error"]["code"] == "shutting_down"


def test_a_scrape_of_some_names_has_those_alone(live: Live) -> None:
    live.generate()
    names = ["vllm:prompt_tokens_total", "lorry_slots", "lorry_adapter_requests_total", "none"]
    answer = live.http.get("/metrics", params=[("name[]", name) for name in names])
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert {line.partition("{")[0].partition(" ")[0] for line in lines} == {*names} - {"none"}
    assert len(answer.text) < len(live.http.get("/metrics").text) / 4
