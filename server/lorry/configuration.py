"""Reads settings: flags override variables, variables override the file, and the file overrides the
defaults. Unknown or wrong values are refused with their source."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from lorry.errors import SettingsError
from lorry.option import PREFIX, Option, parse
from lorry.settings import Settings, options

OTHER_VARIABLES = frozenset({"LORRY_URL", "LORRY_CONFIG"})
"""Variables of ours that are not settings: the client's server, and the settings file."""

_SERVICE_NAME = re.compile(
    r"LORRY_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


def load_settings(
    flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None = None
) -> Settings:
    """Read all settings. `flags` by field name, None if not given; `file` as in `--config`.

    Without `file`, `LORRY_CONFIG` names one. Raises SettingsError.
    """
    table = {option.name: option for option in options()}
    values: dict[str, object] = {}
    sources: dict[str, str] = {}

    if file is None and environ.get("LORRY_CONFIG"):
        file = Path(environ["LORRY_CONFIG"])
    if file is not None:
        for key, raw in _read_file(file).items():
            source = f"key `{key}` in {file}"
            option = _known(key, table, f"{file}: unknown key `{key}`", lambda row: row.name)
            values[option.name] = parse(option, raw, source)
            sources[option.name] = source

    variables = {option.variable: option for option in table.values()}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in OTHER_VARIABLES:
            continue
        if _is_of_a_service(name, environ[name]):
            continue
        option = _known(name, variables, f"unknown variable {name}", lambda row: row.variable)
        source = f"variable {name}"
        values[option.name] = parse(option, environ[name], source)
        sources[option.name] = source

    for name, given in flags.items():
        if given is None:
            continue
        option = _known(name, table, f"unknown flag {name}", lambda row: row.flag)
        source = option.flag if option.positional else f"flag {option.flag}"
        values[option.name] = parse(option, given, source)
        sources[option.name] = source

    settings = Settings(**values)  # type: ignore[arg-type]
    if settings.max_num_batched_tokens < settings.max_num_seqs:
        where = sources.get("max_num_batched_tokens", "max_num_batched_tokens (default)")
        other = sources.get("max_num_seqs", "max_num_seqs (default)")
        raise SettingsError(
            f"{where}: {settings.max_num_batched_tokens} tokens a step are fewer than the "
            f"{settings.max_num_seqs} requests of {other}; every running request needs one"
        )
    return settings


def _is_of_a_service(name: str, value: str) -> bool:
    """True for what Kubernetes sets in each pod beside a Service named `lorry` or `lorry-…`, and
    Docker for a linked container. See https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables.
    """
    if _SERVICE_NAME.fullmatch(name):
        return True
    return name.endswith("PORT") and _SERVICE_ADDRESS.match(value) is not None


def _known(
    name: str, table: Mapping[str, Option], refusal: str, spelling: Callable[[Option], str]
) -> Option:
    option = table.get(name)
    if option is not None:
        return option
    close = difflib.get_close_matches(name.replace("-", "_"), table, n=1, cutoff=0.6)
    hint = f"; did you mean {spelling(table[close[0]])}?" if close else ""
    raise SettingsError(refusal + hint)


def _read_file(file: Path) -> dict[str, object]:
    try:
        data = file.expanduser().read_bytes()
    except OSError as error:
        raise SettingsError(
            f"settings file {file} cannot be read: {error.strerror or error}"
        ) from error
    suffix = file.suffix.lower()
    try:
        if suffix == ".toml":
            content: object = tomllib.loads(data.decode())
        elif suffix in (".yaml", ".yml"):
            content = yaml.safe_load(data)
        else:
            raise SettingsError(f"settings file {file}: its name must end in .toml, .yaml or .yml")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise SettingsError(
            f"settings file {file} is not valid {suffix[1:].upper()}: {error}"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"settings file {file}: expected `key: value` lines at its top level")
    return {str(key): value for key, value in content.items()}
