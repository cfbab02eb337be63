"""The settings about adapters: where they come from, where they are kept, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorry.option import Kind, setting
from lorry_adapters.registry.retention import MOST, MOST_DAYS

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """As in `Settings`, which has these too."""

    max_loras: int = setting(
        8, Kind.INT, "Most adapters on the device at once.", minimum=1, maximum=4096
    )
    adapter_memory: int | None = setting(
        None,
        Kind.SIZE,
        "Most memory for all adapters together: in slots, on their way there, and in host memory.",
        minimum=0,
        default_text="half of what is free beside the base and the KV cache",
    )
    max_cpu_loras: int = setting(
        64, Kind.INT, "Most adapters kept in host memory.", minimum=1, maximum=1_000_000
    )
    host_cache_memory: int | None = setting(
        None,
        Kind.SIZE,
        "Most host memory for adapters.",
        minimum=0,
        default_text="1GiB, or a quarter of the free memory",
    )
    max_lora_rank: int = setting(
        64, Kind.INT, "Largest rank an adapter may have.", minimum=1, maximum=1024
    )
    max_upload: int = setting(
        512 * _MIB,
        Kind.SIZE,
        "Largest adapter that may be uploaded.",
        minimum=_KIB,
        default_text="512MiB",
    )
    adapter_roots: tuple[Path, ...] = setting(
        (),
        Kind.PATHS,
        "Folders on this machine from which adapters may be registered.",
        default_text="none",
    )
    adapter_sources: tuple[str, ...] = setting(
        (),
        Kind.SOURCES,
        "Places from which adapters may be fetched by https, from the hub or from an object store: "
        "`host`, `host:port`, `*.example.com`, `s3://bucket/prefix`, `gs://bucket/prefix`. An "
        "address that is not public must be listed too, itself or its network.",
        default_text="none",
    )
    hub_endpoint: str | None = setting(
        None,
        Kind.TEXT,
        "The hub from which adapters with ids such as `org/name` are fetched.",
        default_text="`HF_ENDPOINT`, or https://huggingface.co",
    )
    adapter_resolvers: tuple[str, ...] = setting(
        (),
        Kind.RESOLVERS,
        "Places in which an unknown adapter that a request names is looked for: `hub` for names "
        "such as `org/name`, `hub:org`, `s3://bucket/prefix`, `gs://bucket/prefix`, "
        "`https://host/path`. `--adapter-sources` must allow them.",
        default_text="none",
    )
    resolve_retry: float = setting(
        60.0,
        Kind.FLOAT,
        "Seconds until a name that could not be resolved is looked for again.",
        minimum=0,
        maximum=86_400,
    )
    fetch_timeout: float = setting(
        600.0,
        Kind.FLOAT,
        "Most seconds that fetching an adapter may take.",
        minimum=0.1,
        maximum=86_400,
    )
    adapter_templates: str = setting(
        "use",
        Kind.CHOICE,
        "Chat template, end tokens, added tokens, sampling defaults and labels that an adapter "
        "brings. use: use them for that adapter. ignore: use the base's for all.",
        choices=("use", "ignore"),
    )
    catalog: str | None = setting(
        None,
        Kind.TEXT,
        "URL of a PostgreSQL database, `postgresql://user:password@host/database`, in which "
        "several servers keep their adapters, keys and audit together. It needs the extra "
        "`lorry[postgres]`. Prefer the variable, as for the API key.",
        secret=True,
        default_text="files in the home",
    )
    store: str | None = setting(
        None,
        Kind.STORE,
        "Where the adapters' files are kept, such as `s3://bucket/prefix`; the home folder is then "
        "their cache. By default they are in the home folder alone.",
        default_text="none",
    )
    store_cache: int | None = setting(
        None,
        Kind.SIZE,
        "Most bytes of adapters' files in the home folder if there is a store; the least recently "
        "used leave it first.",
        minimum=0,
        default_text="no limit",
    )
    watch_adapters: Path | None = setting(  # noqa: RUF009 - it returns a field
        None,
        Kind.PATH,
        "Folder whose PEFT folders are adapters, named by them: put in, registered; changed, a new "
        "version; taken out, as `--watch-removed` says.",
        default_text="none",
    )
    watch_removed: str = setting(
        "disable",
        Kind.CHOICE,
        "What to do with an adapter whose folder was taken out of `--watch-adapters`.",
        choices=("disable", "remove", "keep"),
    )
    keep_unclaimed: float = setting(
        7.0,
        Kind.FLOAT,
        "Days to keep stored files that no adapter has; a later start deletes them.",
        minimum=0,
        maximum=36_500,
    )
    keep_versions: int = setting(
        0,
        Kind.INT,
        "Newest versions kept of each adapter; 0 keeps all. Those that are current, in use, in a "
        "split or behind an alias stay, and so do the newest two. An adapter may have a number of "
        "its own.",
        minimum=0,
        maximum=MOST,
    )
    keep_audit_days: float = setting(
        0.0,
        Kind.FLOAT,
        "Days to keep the audit's entries; 0 keeps them for ever.",
        minimum=0,
        maximum=MOST_DAYS,
    )
    keep_version_days: float = setting(
        0.0,
        Kind.FLOAT,
        "Days to keep a version that is none of those; 0 keeps it for ever.",
        minimum=0,
        maximum=MOST_DAYS,
    )
    samples: bool = setting(True, Kind.BOOL, "Register the sample adapters if they fit the base.")
