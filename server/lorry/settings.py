"""Every setting of the server: one frozen `Settings`, one table that drives four places.

The metadata of a field says its kind, bounds and help; from it come the flag
(`--max-loras`), the variable (`LORRY_MAX_LORAS`), the key in a TOML or YAML file
(`max_loras`) and the row of the documentation's table. Flags win over variables,
variables over the file, the file over the default. A bad value is refused with the
place it came from; an unknown variable or key is refused too, because a misspelt
setting that is ignored is worse than a server that does not start.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

from lorry.option import Kind, Option

DEFAULT_MODEL = "smollm2-135m"


def _option(
    default: object,
    kind: Kind,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
    positional: bool = False,
    default_text: str | None = None,
) -> Any:
    metadata = {
        "kind": kind,
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "secret": secret,
        "positional": positional,
        "default_text": default_text,
    }
    if default is MISSING:
        return field(default_factory=_default_home, repr=not secret, metadata=metadata)
    return field(default=default, repr=not secret, metadata=metadata)


def _default_home() -> Path:
    return platformdirs.user_data_path("lorry", appauthor=False)


_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """Resolved and checked. Sizes are bytes, durations seconds."""

    model: str = _option(
        DEFAULT_MODEL,
        Kind.TEXT,
        "The base: an alias (`lorry models list`), a hub id, a folder, or a GGUF file.",
        positional=True,
    )
    revision: str | None = _option(
        None, Kind.TEXT, "Branch, tag or commit of a hub model.", default_text="the main branch"
    )
    hf_token: str | None = _option(
        None,
        Kind.TEXT,
        "Token for private or gated hub models.",
        secret=True,
        default_text="the hub client's own",
    )
    served_model_name: str | None = _option(
        None,
        Kind.TEXT,
        "What the base is called in the API; several names with ',' between them, of which the "
        "first stands in answers.",
        default_text="the alias, or the last part of MODEL",
    )
    quantize: str = _option(
        "auto",
        Kind.CHOICE,
        "Weights of the base, by bitsandbytes. auto: nf4 on CUDA, int8 on a CPU.",
        choices=("auto", "nf4", "fp4", "int8", "none"),
    )
    bnb_4bit_double_quant: bool = _option(
        True, Kind.BOOL, "nf4 and fp4: quantize the block scales too, 0.4 bits a weight less."
    )
    int8_threshold: float = _option(
        0.0,
        Kind.FLOAT,
        "int8: columns with an activation beyond this run unquantized; 0 is off. Above 0 a "
        "request's tokens can depend on the others in its batch.",
        minimum=0,
    )
    device: str = _option(
        "auto",
        Kind.CHOICE,
        "Where the base lives. auto: CUDA when there is one.",
        choices=("auto", "cpu", "cuda"),
    )
    dtype: str = _option(
        "auto",
        Kind.CHOICE,
        "What unquantized weights and activations are. auto: bfloat16 on CUDA, float32 on a CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    host: str = _option("127.0.0.1", Kind.TEXT, "Address to listen on.")
    port: int = _option(
        8000, Kind.INT, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535
    )
    allowed_hosts: tuple[str, ...] = _option(
        (),
        Kind.HOSTS,
        "Names that the server is reached by, beside localhost, the machine's own name, `--host` "
        "and, unless that is a loopback address, every address. Requests whose `Host` is another "
        "are refused; `*` takes any.",
        default_text="none",
    )
    allowed_origins: tuple[str, ...] = _option(
        (),
        Kind.ORIGINS,
        "Origins such as `https://app.example.com` whose pages may use the server from a browser; "
        "`*` lets any page use it.",
        default_text="none",
    )
    trusted_proxies: tuple[str, ...] = _option(
        (),
        Kind.NETWORKS,
        "Proxies whose `X-Forwarded-For` says who the caller is, and whose `X-Forwarded-Prefix` "
        "stands for `--root-path`; of others they are not read.",
        default_text="none",
    )
    root_path: str = _option(
        "",
        Kind.URL_PATH,
        "Path that the server is reached below, where a proxy has it below one of its own; the "
        "proxy may cut it off or leave it on.",
        default_text="none",
    )
    home: Path = _option(  # noqa: RUF009 - it returns a field, as every line here does
        MISSING,
        Kind.PATH,
        "Folder of the adapter catalogue, the adapters and the model cache.",
        default_text="the platform's user data folder",
    )
    api_key: str | None = _option(
        None,
        Kind.TEXT,
        "Requests must carry it as a bearer token or as `x-api-key`. Better in the variable than "
        "in a flag, which every user of the machine can read.",
        secret=True,
        default_text="no key asked for",
    )
    kernels: str = _option(
        "auto",
        Kind.CHOICE,
        "What runs the steps. native: the compiled step, for an int8 base on a CPU. torch: "
        "PyTorch's operations. auto: native where it was built and knows the model, Triton's "
        "kernels on CUDA where they prove right, else torch.",
        choices=("auto", "native", "torch"),
    )
    max_loras: int = _option(
        8, Kind.INT, "Adapters on the device at once, beside the base.", minimum=1, maximum=4096
    )
    max_cpu_loras: int = _option(
        64, Kind.INT, "Adapters kept in host memory at most.", minimum=1, maximum=1_000_000
    )
    host_cache_memory: int = _option(
        _GIB, Kind.SIZE, "Host memory for adapters at most.", minimum=0, default_text="1GiB"
    )
    max_lora_rank: int = _option(
        64, Kind.INT, "Largest rank an adapter may have.", minimum=1, maximum=1024
    )
    max_model_len: int | None = _option(
        None,
        Kind.INT,
        "Prompt and answer together, in tokens; not more than the model has.",
        minimum=1,
        default_text="the model's own",
    )
    beyond_context: str = _option(
        "clip",
        Kind.CHOICE,
        "What becomes of a `max_tokens` that the context has no room for, on OpenAI's routes. "
        "clip: the answer gets what room there is. refuse: 400 `context_length_exceeded`.",
        choices=("clip", "refuse"),
    )
    unknown_fields: str = _option(
        "warn",
        Kind.CHOICE,
        "Fields of requests that are not served. warn: those that cannot change the answer are "
        "accepted and named in its `X-Lorry-Ignored`. refuse: none is accepted.",
        choices=("warn", "refuse"),
    )
    max_num_seqs: int = _option(
        16, Kind.INT, "Requests that run in one step at most.", minimum=1, maximum=4096
    )
    max_num_batched_tokens: int = _option(
        512,
        Kind.INT,
        "Tokens in one step at most; at least max_num_seqs.",
        minimum=1,
        maximum=1_000_000,
    )
    max_queue: int = _option(
        256,
        Kind.INT,
        "Requests that wait at most; one more is answered 429, unless its caller has none that "
        "waits: so the requests of one keep no other out.",
        minimum=0,
    )
    kv_cache_memory: int = _option(
        2 * _GIB, Kind.SIZE, "Memory of the KV cache.", minimum=_KIB, default_text="2GiB"
    )
    max_upload: int = _option(
        512 * _MIB,
        Kind.SIZE,
        "Largest adapter that may be uploaded.",
        minimum=_KIB,
        default_text="512MiB",
    )
    adapter_roots: tuple[Path, ...] = _option(
        (),
        Kind.PATHS,
        "Folders of this machine that adapters may be registered from.",
        default_text="none",
    )
    adapter_templates: str = _option(
        "use",
        Kind.CHOICE,
        "Chat template, end tokens, added tokens, defaults of sampling and labels that an adapter "
        "brings: use them for it, or the base's for all.",
        choices=("use", "ignore"),
    )
    keep_unclaimed: float = _option(
        7.0,
        Kind.FLOAT,
        "Days that stored files which no adapter has are kept; a later start deletes them.",
        minimum=0,
        maximum=36_500,
    )
    samples: bool = _option(
        True, Kind.BOOL, "Register the sample adapters when the base is the one they fit."
    )
    tool_prompt: str = _option(
        "auto",
        Kind.CHOICE,
        "What brings tools to the model. auto: the base's chat template, or a prompt of Lorry's "
        "where that takes none. template: the template alone; where it takes none, tools are "
        "refused. generic: always Lorry's prompt.",
        choices=("auto", "template", "generic"),
    )
    tool_parser: str = _option(
        "auto",
        Kind.CHOICE,
        "The notation of calls that the base writes by itself. auto: what its chat template asks "
        "for.",
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
    reasoning_parser: str = _option(
        "auto",
        Kind.CHOICE,
        "The marks around the reasoning of a model, which is parted from its answers as "
        "`reasoning_content`. auto: those in its chat template. none: it stays in the text.",
        choices=("auto", "none", "think", "mistral", "granite", "gemma", "seed"),
    )
    trust_request_chat_template: bool = _option(
        False,
        Kind.BOOL,
        "A request may bring its own `chat_template`. It is rendered in a process of its own, "
        "which ends after 2 s of processor time or 256 MiB.",
    )
    responses_memory: int = _option(
        64 * _MIB,
        Kind.SIZE,
        "Memory for stored responses (`/v1/responses`) at most; the oldest go first.",
        minimum=0,
        default_text="64MiB",
    )
    keep_responses: float = _option(
        3600.0,
        Kind.FLOAT,
        "Seconds that a stored response is kept; 0 stores none.",
        minimum=0,
        maximum=31_536_000,
    )
    json_schema: str = _option(
        "closed",
        Kind.CHOICE,
        "How JSON schemas of answers are read. closed: an object has no properties beside those "
        "that are named, unless the schema says otherwise; one space at most between two parts; "
        "oneOf is anyOf, and uniqueItems a note. letter: as JSON Schema has it.",
        choices=("closed", "letter"),
    )
    shutdown_grace: float = _option(
        30.0,
        Kind.FLOAT,
        "Seconds that running requests get to finish after SIGTERM.",
        minimum=0,
        maximum=86_400,
    )
    log_level: str = _option(
        "info",
        Kind.CHOICE,
        "Least severe message to log.",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = _option(
        "text", Kind.CHOICE, "Log lines for people, or JSON.", choices=("text", "json")
    )


def options() -> tuple[Option, ...]:
    """The table of settings, in the order of the documentation."""
    rows = []
    for item in fields(Settings):
        default = item.default
        if item.default_factory is not MISSING:
            default = item.default_factory()
        metadata = dict(item.metadata)
        text = metadata.pop("default_text")
        if text is None:
            text = str(default).lower() if isinstance(default, bool) else str(default)
        rows.append(Option(name=item.name, default=default, default_text=text, **metadata))
    return tuple(rows)


def markdown_table() -> str:
    """The settings as a Markdown table, one row each, for the documentation."""
    lines = ["| Flag | Variable | Key | Default | |", "|---|---|---|---|---|"]
    for option in options():
        flag = f"`{option.flag}`"
        if option.negative_flag:
            flag += f", `{option.negative_flag}`"
        text = option.help
        if option.choices:
            text += " (" + ", ".join(f"`{choice}`" for choice in option.choices) + ")"
        lines.append(
            f"| {flag} | `{option.variable}` | `{option.name}` | {option.default_text} | {text} |"
        )
    return "\n".join(lines) + "\n"
