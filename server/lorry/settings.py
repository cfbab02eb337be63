"""Every setting of the server: one frozen `Settings`, one table that drives four places.

The metadata of a field says its kind, bounds and help; from it come the flag (`--max-loras`), the
variable (`LORRY_MAX_LORAS`), the key in a TOML or YAML file (`max_loras`) and the row of the
documentation's table. Flags win over variables, variables over the file, the file over the default.
A bad value is refused with the place it came from, and so is an unknown variable or key.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import platformdirs

from lorry.adapter_settings import AdapterSettings
from lorry.option import Kind, Option, option_of, setting

DEFAULT_MODEL = "smollm2-135m"


def _default_home() -> Path:
    return platformdirs.user_data_path("lorry", appauthor=False)


_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Settings(AdapterSettings):
    """Resolved and checked. Sizes are bytes, durations seconds."""

    model: str = setting(
        DEFAULT_MODEL,
        Kind.TEXT,
        "The base: an alias (`lorry models list`), a hub id, a folder, or a GGUF file.",
        positional=True,
    )
    revision: str | None = setting(
        None, Kind.TEXT, "Branch, tag or commit of a hub model.", default_text="the main branch"
    )
    hf_token: str | None = setting(
        None,
        Kind.TEXT,
        "Token for private or gated hub models.",
        secret=True,
        default_text="the hub client's own",
    )
    served_model_name: str | None = setting(
        None,
        Kind.TEXT,
        "Name of the base in the API; several are separated by ',', and answers have the first.",
        default_text="the alias, or the last part of MODEL",
    )
    quantize: str = setting(
        "auto",
        Kind.CHOICE,
        "How bitsandbytes quantizes the base. auto: nf4 on CUDA; on a CPU int8 if it fits in the "
        "free memory with the caches, else nf4.",
        choices=("auto", "nf4", "fp4", "int8", "none"),
    )
    bnb_4bit_double_quant: bool = setting(
        True,
        Kind.BOOL,
        "nf4 and fp4: also quantize the block scales, which saves 0.4 bits a weight.",
    )
    keep_packed: bool = setting(
        True,
        Kind.BOOL,
        "Keep the quantized base in the home as the compiled step reads it, so that the next "
        "start is faster. It takes as much disk space as the base takes memory.",
    )
    int8_threshold: float = setting(
        0.0,
        Kind.FLOAT,
        "int8: columns with an activation beyond this run unquantized; 0 is off. Above 0, a "
        "request's tokens can depend on the other requests in its batch.",
        minimum=0,
    )
    device: str = setting(
        "auto",
        Kind.CHOICE,
        "Where the base runs. auto: CUDA if there is a device.",
        choices=("auto", "cpu", "cuda"),
    )
    dtype: str = setting(
        "auto",
        Kind.CHOICE,
        "Type of unquantized weights and of activations. auto: bfloat16 on CUDA, float32 on a CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    host: str = setting("127.0.0.1", Kind.TEXT, "Address to listen on.")
    port: int = setting(
        8000, Kind.INT, "Port to listen on; 0 picks a free one.", minimum=0, maximum=65535
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        Kind.HOSTS,
        "Names that the server answers to, in addition to localhost, the machine's own name, "
        "`--host` and, unless that is a loopback address, every IP address. Requests with another "
        "`Host` are refused; `*` admits any.",
        default_text="none",
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        Kind.ORIGINS,
        "Origins such as `https://app.example.com` whose pages may use the server from a browser; "
        "`*` admits any page.",
        default_text="none",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        Kind.NETWORKS,
        "Proxies whose `X-Forwarded-For` names the caller and whose `X-Forwarded-Prefix` replaces "
        "`--root-path`. From anyone else these headers are not read.",
        default_text="none",
    )
    root_path: str = setting(
        "",
        Kind.URL_PATH,
        "Path under which a proxy publishes the server; the proxy may cut it off or pass it on.",
        default_text="none",
    )
    home: Path = setting(  # noqa: RUF009 - it returns a field, as every line here does
        _default_home,
        Kind.PATH,
        "Folder for the adapter catalog, the adapters and the model cache.",
        default_text="the platform's user data folder",
    )
    api_key: str | None = setting(
        None,
        Kind.TEXT,
        "Key, as a bearer token or `x-api-key`, that may do everything. Prefer the variable: every "
        "user of the machine can read a flag.",
        secret=True,
        default_text="no key asked for",
    )
    open_to_anyone: bool = setting(
        False, Kind.BOOL, "Serve whoever reaches a `--host` beyond this machine without any key."
    )
    kernels: str = setting(
        "auto",
        Kind.CHOICE,
        "What runs the steps. compiled: the compiled step, for a quantized base on a CPU. torch: "
        "PyTorch's operations. auto: compiled if it was built, can describe the model's layers and "
        "passes its check, Triton's kernels on CUDA if they pass theirs, otherwise torch.",
        choices=("auto", "compiled", "torch"),
    )
    threads: int = setting(
        0,
        Kind.INT,
        "Threads that compute on a CPU. 0: as many as PyTorch counts, which is one for each "
        "physical core or what `OMP_NUM_THREADS` says, and no more than the cores that this "
        "process may use, by its affinity and its container's CPU quota.",
        minimum=0,
        maximum=1024,
    )
    max_model_len: int | None = setting(
        None,
        Kind.INT,
        "Most tokens of a prompt and its answer together; at most the model's own.",
        minimum=1,
        default_text="the model's own",
    )
    beyond_context: str = setting(
        "clip",
        Kind.CHOICE,
        "What to do on OpenAI's routes if `max_tokens` does not fit the context. clip: use the "
        "room that is left. refuse: answer 400 `context_length_exceeded`.",
        choices=("clip", "refuse"),
    )
    ui: str = setting("on", Kind.CHOICE, "The page at `/`.", choices=("on", "off"))
    unknown_fields: str = setting(
        "warn",
        Kind.CHOICE,
        "Request fields that are not served. warn: accept those that cannot change the answer, "
        "and name them in `X-Lorry-Ignored`. refuse: accept none.",
        choices=("warn", "refuse"),
    )
    max_num_seqs: int = setting(16, Kind.INT, "Most requests in one step.", minimum=1, maximum=4096)
    max_num_batched_tokens: int = setting(
        512, Kind.INT, "Most tokens in one step; at least max_num_seqs.", minimum=1, maximum=10**6
    )
    max_step_time: float = setting(
        0.0,
        Kind.FLOAT,
        "Seconds that a step should take: it has prompt tokens for that, 16 at least. 0: any.",
        minimum=0,
    )
    max_queue: int = setting(
        256,
        Kind.INT,
        "Most requests that wait. One more is answered 429, unless its caller has none waiting, "
        "so that no caller can keep others out.",
        minimum=0,
    )
    kv_cache_memory: int | None = setting(
        None,
        Kind.SIZE,
        "Memory for the KV cache.",
        minimum=_KIB,
        default_text="2GiB, or half of what is free beside the base",
    )
    kv_cache_dtype: str = setting(
        "auto",
        Kind.CHOICE,
        "Type of its numbers. auto: float16 on the compiled step, elsewhere that of activations. "
        "int8: bytes with a scale for each token and head, about half of float16; for the "
        "compiled step alone.",
        choices=("auto", "int8"),
    )
    prefix_cache: str = setting(
        "on",
        Kind.CHOICE,
        "Whether the keys and values of a prompt are kept, as long as the KV cache has room, for "
        "requests that begin with the same tokens and adapters.",
        choices=("on", "off"),
    )
    prefix_cache_scope: str = setting(
        "server",
        Kind.CHOICE,
        "Who shares them. server: all requests; a caller can find out by time what others have "
        "sent. caller: requests of one caller: of a key of `lorry keys`, otherwise of an address.",
        choices=("server", "caller"),
    )
    speculative: str = setting(
        "off",
        Kind.CHOICE,
        "ngram: tokens are drafted from the request's own text. ngram+answers: and from recent "
        "answers of the same adapters. No answer depends on it.",
        choices=("off", "ngram", "ngram+answers"),
    )
    tool_prompt: str = setting(
        "auto",
        Kind.CHOICE,
        "How the model learns of tools. auto: from the base's chat template, or from Lorry's "
        "prompt if the template takes no tools. template: only from the template; if it takes no "
        "tools, they are refused. generic: always from Lorry's prompt.",
        choices=("auto", "template", "generic"),
    )
    tool_parser: str = setting(
        "auto",
        Kind.CHOICE,
        "Notation in which the base writes calls. auto: the one that its chat template asks for.",
        choices=(
            "auto",
            "hermes",
            "llama3",
            "pythonic",
            "mistral",
            "qwen",
            "phi",
            "granite",
            "gemma",
            "json",
        ),
    )
    reasoning_parser: str = setting(
        "auto",
        Kind.CHOICE,
        "Marks around a model's reasoning, which is returned apart from the answer as "
        "`reasoning_content`. auto: those in its chat template. none: reasoning stays in the "
        "text.",
        choices=("auto", "none", "think", "mistral", "granite", "gemma", "seed"),
    )
    trust_request_chat_template: bool = setting(
        False,
        Kind.BOOL,
        "Let requests bring their own `chat_template`. It is rendered in a process of its own, "
        "which ends after 2 s of processor time or 256 MiB.",
    )
    responses_memory: int = setting(
        64 * _MIB,
        Kind.SIZE,
        "Most memory for stored responses (`/v1/responses`); the oldest are dropped first.",
        minimum=0,
        default_text="64MiB",
    )
    keep_responses: float = setting(
        3600.0,
        Kind.FLOAT,
        "Seconds to keep a stored response; 0 stores none.",
        minimum=0,
        maximum=31_536_000,
    )
    engine_process: str = setting(
        "auto",
        Kind.CHOICE,
        "Whether the engine runs in a process of its own. `auto` is `off`.",
        choices=("auto", "on", "off"),
    )
    json_schema: str = setting(
        "closed",
        Kind.CHOICE,
        "How JSON schemas of answers are read. closed: an object has only the properties that are "
        "named, unless the schema says otherwise; at most one space stands between two parts; "
        "oneOf is read as anyOf, and uniqueItems is not enforced. letter: to the letter of JSON "
        "Schema.",
        choices=("closed", "letter"),
    )
    shutdown_grace: float = setting(
        30.0,
        Kind.FLOAT,
        "Seconds that running requests have to finish after SIGTERM.",
        minimum=0,
        maximum=86_400,
    )
    log_level: str = setting(
        "info",
        Kind.CHOICE,
        "Least severe message to log.",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = setting(
        "text",
        Kind.CHOICE,
        "Format of log lines: text for people, or JSON.",
        choices=("text", "json"),
    )


def options() -> tuple[Option, ...]:
    """The table of settings, in the order of the documentation."""
    items = fields(Settings)
    inherited = len(fields(AdapterSettings))
    return tuple(map(option_of, (*items[inherited:], *items[:inherited])))
