"""Settings: one table, four places, and a refusal that names the place."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.configuration import load_settings
from lorry.errors import SettingsError
from lorry.option import Kind, format_size, parse_size
from lorry.settings import DEFAULT_MODEL, Settings, options
from support.settings_table import markdown_table

OTHER: dict[str, tuple[str, object]] = {
    "model": ("org/name", "org/name"),
    "revision": ("abc", "abc"),
    "hf_token": ("hf_1", "hf_1"),
    "served_model_name": ("base", "base"),
    "quantize": ("fp4", "fp4"),
    "bnb_4bit_double_quant": ("false", False),
    "keep_packed": ("false", False),
    "int8_threshold": ("6", 6.0),
    "device": ("cpu", "cpu"),
    "dtype": ("bfloat16", "bfloat16"),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "allowed_hosts": ("Lorry, *.example.com.", ("lorry", "*.example.com")),
    "allowed_origins": (
        "https://App.example.com/, http://localhost:80,app://obsidian.md,file://,null",
        ("https://app.example.com", "http://localhost", "app://obsidian.md", "file://", "null"),
    ),
    "trusted_proxies": ("10.0.0.1, fd00::/8", ("10.0.0.1/32", "fd00::/8")),
    "root_path": ("/llm/", "/llm"),
    "home": ("/srv/lorry", Path("/srv/lorry")),
    "api_key": ("secret", "secret"),
    "open_to_anyone": ("yes", True),
    "kernels": ("torch", "torch"),
    "threads": ("3", 3),
    "max_loras": ("4", 4),
    "max_cpu_loras": ("5", 5),
    "adapter_memory": ("96MiB", 96 << 20),
    "host_cache_memory": ("64MiB", 64 << 20),
    "max_lora_rank": ("16", 16),
    "max_model_len": ("1024", 1024),
    "beyond_context": ("refuse", "refuse"),
    "ui": ("off", "off"),
    "unknown_fields": ("refuse", "refuse"),
    "max_num_seqs": ("2", 2),
    "max_num_batched_tokens": ("64", 64),
    "max_step_time": ("0.25", 0.25),
    "max_queue": ("0", 0),
    "kv_cache_memory": ("1GiB", 1 << 30),
    "kv_cache_dtype": ("int8", "int8"),
    "prefix_cache": ("off", "off"),
    "prefix_cache_scope": ("caller", "caller"),
    "speculative": ("ngram+answers", "ngram+answers"),
    "max_upload": ("1MiB", 1 << 20),
    "adapter_roots": (os.pathsep.join(["/a", "/b"]), (Path("/a"), Path("/b"))),
    "adapter_sources": (
        "Files.example.com, *.hf.co,[::1]:8443,10.0.0.1/8,s3://bucket/prefix/",
        ("files.example.com", "*.hf.co", "[::1]:8443", "10.0.0.0/8", "s3://bucket/prefix"),
    ),
    "hub_endpoint": ("https://hub.example.com", "https://hub.example.com"),
    "adapter_resolvers": (
        "hub, hub:org,s3://bucket/prefix/",
        ("hub", "hub:org", "s3://bucket/prefix"),
    ),
    "resolve_retry": ("5", 5.0),
    "fetch_timeout": ("60", 60.0),
    "adapter_templates": ("ignore", "ignore"),
    "catalog": ("postgresql://lorry@db/lorry", "postgresql://lorry@db/lorry"),
    "store": ("s3://bucket/prefix/", "s3://bucket/prefix"),
    "store_cache": ("2GiB", 2 << 30),
    "watch_adapters": ("/srv/adapters", Path("/srv/adapters")),
    "watch_removed": ("remove", "remove"),
    "keep_unclaimed": ("0.5", 0.5),
    "keep_versions": ("20", 20),
    "keep_audit_days": ("365", 365.0),
    "keep_version_days": ("7", 7.0),
    "samples": ("no", False),
    "tool_prompt": ("template", "template"),
    "tool_parser": ("mistral", "mistral"),
    "reasoning_parser": ("think", "think"),
    "trust_request_chat_template": ("yes", True),
    "responses_memory": ("1MiB", 1 << 20),
    "keep_responses": ("60", 60.0),
    "engine_process": ("on", "on"),
    "json_schema": ("letter", "letter"),
    "shutdown_grace": ("1.5", 1.5),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}
"""For every setting a text that is not its default, and what it means."""


NETWORKS = "addresses or networks such as 10.0.0.0/8, separated by ',' (a list in a file)"
ORIGINS = (
    "origins such as https://app.example.com, without a path, separated by ',' (a list in a file); "
    "* is any"
)
HOSTS = (
    "names or addresses without ports, separated by ',' (a list in a file); "
    "*.example.com is all below a name, * is any"
)


def test_every_setting_is_in_the_tables() -> None:
    names = [item.name for item in fields(Settings)]
    assert sorted(OTHER) == sorted(names)
    assert sorted(option.name for option in options()) == sorted(names)
    assert options()[0].name == "model"
    table = markdown_table()
    for option in options():
        assert option.help.endswith(".")
        assert table.count(f"| `{option.name}` |") == 1
        assert f"`{option.variable}`" in table
        assert f"`{option.flag}`" in table


@pytest.mark.parametrize("name", list(OTHER))
def test_every_setting_from_every_place(name: str, tmp_path: Path) -> None:
    text, value = OTHER[name]
    variable = f"LORRY_{name.upper()}"
    toml = tmp_path / "lorry.toml"
    toml.write_text(f'{name} = "{text}"\n')
    default = load_settings({}, {})
    assert getattr(default, name) != value
    for settings in (
        load_settings({name: text}, {}),
        load_settings({}, {variable: text}),
        load_settings({}, {}, toml),
        load_settings({}, {"LORRY_CONFIG": str(toml)}),
    ):
        assert getattr(settings, name) == value
        for other in OTHER:
            if other != name:
                assert getattr(settings, other) == getattr(default, other)


def test_flags_win_over_variables_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lorry.yaml"
    file.write_text(
        "port: 1\nmax_loras: 1\nmax_queue: 1\nadapter_roots: [/a, /b]\nsamples: false\n"
    )
    settings = load_settings(
        {"port": 3, "host": None}, {"LORRY_PORT": "2", "LORRY_MAX_LORAS": "2"}, file
    )
    assert (settings.port, settings.max_loras, settings.max_queue) == (3, 2, 1)
    assert settings.max_num_seqs == Settings().max_num_seqs
    assert settings.adapter_roots == (Path("/a"), Path("/b"))
    assert settings.samples is False


@pytest.mark.parametrize(
    ("name", "bad", "allowed"),
    [
        ("port", "99999", "a whole number from 0 to 65535"),
        ("port", "8000.0", "a whole number from 0 to 65535"),
        ("port", "", "a whole number from 0 to 65535"),
        ("max_loras", "-1", "a whole number from 1 to 4096"),
        ("max_queue", "many", "a whole number, 0 or more"),
        ("quantize", "int4", "one of auto, nf4, fp4, int8, none"),
        ("device", "CPU ", "one of auto, cpu, cuda"),
        ("int8_threshold", "nan", "a number, 0 or more"),
        ("shutdown_grace", "inf", "a number from 0 to 86400"),
        ("kv_cache_memory", "2 gigs", "a size such as 512MiB or 2GiB"),
        ("kv_cache_memory", "0", "a size such as 512MiB or 2GiB"),
        ("samples", "maybe", "true or false"),
        ("host", "  ", "text that is not empty"),
        ("allowed_hosts", "a.example:8000", HOSTS),
        ("allowed_hosts", "https://a.example", HOSTS),
        ("allowed_hosts", "a,,b", HOSTS),
        ("allowed_origins", "app.example.com", ORIGINS),
        ("allowed_origins", "https://app.example.com/chat", ORIGINS),
        ("allowed_origins", "https://*.example.com", ORIGINS),
        ("root_path", "llm", "the path of a URL, such as /llm"),
        ("root_path", "https://a.example/llm", "the path of a URL, such as /llm"),
        ("root_path", "/a/../b", "the path of a URL, such as /llm"),
        ("trusted_proxies", "proxy.example", NETWORKS),
        ("trusted_proxies", "*", NETWORKS),
        ("allowed_hosts", "a.*.b", HOSTS),
        ("home", " ", "a path"),
    ],
)
def test_a_bad_value_is_refused_with_its_place(
    name: str, bad: str, allowed: str, tmp_path: Path
) -> None:
    file = tmp_path / "lorry.toml"
    file.write_text(f'{name} = "{bad}"\n')
    flag = "--" + name.replace("_", "-")
    for place, call in (
        (f"flag {flag}", lambda: load_settings({name: bad}, {})),
        (
            f"variable LORRY_{name.upper()}",
            lambda: load_settings({}, {f"LORRY_{name.upper()}": bad}),
        ),
        (f"key `{name}` in {file}", lambda: load_settings({}, {}, file)),
    ):
        with pytest.raises(SettingsError) as caught:
            call()
        assert caught.value.message == f"{place}: {bad!r} is not allowed; give {allowed}"


@pytest.mark.parametrize("value", ["true", "[1]", "1.5", "2024-01-01"])
def test_a_file_s_value_of_the_wrong_type_is_refused(value: str, tmp_path: Path) -> None:
    file = tmp_path / "lorry.toml"
    file.write_text(f"port = {value}\n")
    with pytest.raises(SettingsError, match="key `port`"):
        load_settings({}, {}, file)


def test_unknown_names_are_refused_with_the_closest_known_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({}, {"LORRY_MAX_LORA": "3"})
    assert caught.value.message == "unknown variable LORRY_MAX_LORA; did you mean LORRY_MAX_LORAS?"
    file = tmp_path / "lorry.yml"
    file.write_text("max-num-seqs: 3\n")
    with pytest.raises(SettingsError) as caught:
        load_settings({}, {}, file)
    assert caught.value.message == f"{file}: unknown key `max-num-seqs`; did you mean max_num_seqs?"
    file.write_text("zzzzz: 3\n")
    with pytest.raises(SettingsError) as caught:
        load_settings({}, {}, file)
    assert caught.value.message == f"{file}: unknown key `zzzzz`"


def test_a_kubernetes_service_of_our_name_changes_nothing() -> None:
    """The kubelet sets these in every pod of the namespace."""
    injected = {
        "LORRY_SERVICE_HOST": "10.0.0.1",
        "LORRY_SERVICE_PORT": "8000",
        "LORRY_SERVICE_PORT_HTTP": "8000",
        "LORRY_PORT": "tcp://10.0.0.1:8000",
        "LORRY_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "LORRY_PORT_8000_TCP_PROTO": "tcp",
        "LORRY_PORT_8000_TCP_PORT": "8000",
        "LORRY_PORT_8000_TCP_ADDR": "10.0.0.1",
        "LORRY_GPU_SERVICE_HOST": "10.0.0.2",
        "LORRY_GPU_PORT": "udp://10.0.0.2:53",
        "LORRY_GPU_PORT_53_UDP": "udp://10.0.0.2:53",
    }
    assert load_settings({}, injected) == Settings()
    assert load_settings({"port": "9000"}, injected).port == 9000
    assert load_settings({}, {"LORRY_PORT": "9000"}).port == 9000
    for name, value in {
        "LORRY_PORT": "http://x",
        "LORRY_SERVICE": "x",
        "LORRY_GPU_PORT": "1",
    }.items():
        with pytest.raises(SettingsError, match=name):
            load_settings({}, {name: value})


def test_variables_of_others_are_left_alone() -> None:
    assert load_settings({}, {"LORRY_URL": "http://x", "PORT": "1", "PATH": "/bin"}) == Settings()


def test_a_secret_is_in_no_error_and_no_repr() -> None:
    settings = load_settings({}, {"LORRY_API_KEY": "hush", "LORRY_HF_TOKEN": "hush2"})
    assert settings.api_key == "hush"
    assert "hush" not in repr(settings)
    with pytest.raises(SettingsError) as caught:
        load_settings({}, {"LORRY_API_KEY": ""})
    assert caught.value.message.startswith("variable LORRY_API_KEY: this value is not allowed")


def test_fewer_tokens_than_requests_in_a_step_are_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"max_num_batched_tokens": "8"}, {"LORRY_MAX_NUM_SEQS": "9"})
    assert "flag --max-num-batched-tokens: 8" in caught.value.message
    assert "variable LORRY_MAX_NUM_SEQS" in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("lorry.toml", b"port = ", "not valid TOML"),
        ("lorry.yaml", b"port: [", "not valid YAML"),
        ("lorry.yaml", b"- port", "at its top level"),
        ("lorry.toml", b"\xff\xfe", "not valid TOML"),
        ("lorry.json", b"{}", "must end in .toml, .yaml or .yml"),
    ],
)
def test_a_broken_file_is_refused(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=problem) as caught:
        load_settings({}, {}, file)
    assert str(file) in caught.value.message


def test_a_missing_file_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load_settings({}, {}, tmp_path / "none.toml")
    for name in ("lorry.toml", "lorry.yaml"):
        (tmp_path / name).write_text("")
        assert load_settings({}, {}, tmp_path / name) == Settings()


def test_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert load_settings({"home": "x"}, {}).home == tmp_path / "x"
    assert load_settings({"home": "~/x"}, {}).home == tmp_path / "me" / "x"


def test_the_default_base_is_the_one_that_needs_no_hub() -> None:
    assert Settings().model == DEFAULT_MODEL == "smollm2-135m"
    assert Settings().host == "127.0.0.1"
    assert Settings().home.is_absolute()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        ("1KiB", 1024),
        ("2 GiB", 2 << 30),
        ("1.5gib", 3 << 29),
        ("1kB", 1000),
        ("3MB", 3_000_000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2G", "-1MiB", "1e3", "1.5", "2GiBs", "0x10"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_size_is_shown_within_a_tenth_of_its_unit(count: int) -> None:
    shown = parse_size(format_size(count))
    assert abs(shown - count) <= max(1, count * 0.06)


def test_bool_options_have_a_negative_flag() -> None:
    for option in options():
        assert (option.negative_flag is not None) == (option.kind is Kind.BOOL)


@pytest.mark.parametrize("text", ["-1", "1025", "two", "0.5", "1e9"])
def test_threads_that_nobody_has_are_refused(text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({"threads": text}, {})
    assert refused.value.message == (
        f"flag --threads: {text!r} is not allowed; give a whole number from 0 to 1024"
    )
