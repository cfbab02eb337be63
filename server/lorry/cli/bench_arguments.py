"""Reads the arguments of `lorry bench`. All functions raise SettingsError."""

from __future__ import annotations

from collections.abc import Sequence

from lorry.bench import preset
from lorry.bench.popularity import Popularity, parse
from lorry.bench.preset import Stage
from lorry.bench.workload import Span
from lorry.errors import SettingsError


def preset_of(name: str, zipf: bool, *, own_server: bool) -> tuple[Stage, ...]:
    if name.upper() not in preset.NAMES:
        raise SettingsError(f"--preset {name}: give one of {', '.join(preset.NAMES)}")
    if name.upper() == "S":
        if zipf:
            raise SettingsError("--zipf is for --preset W; leave it out")
        return preset.workload_s()
    return preset.workload_w(zipf=zipf, own_server=own_server)


def popularity_of(text: str) -> Popularity:
    try:
        return parse(text)
    except ValueError as error:
        raise SettingsError(f"--popularity {text}: {error}") from None


def span_of(text: str, flag: str) -> Span:
    low, _, high = text.partition("-")
    if not (low.isdecimal() and (high or low).isdecimal() and 1 <= int(low) <= int(high or low)):
        raise SettingsError(f"{flag} {text}: give a number such as 64, or a range such as 32-128")
    return Span(int(low), int(high or low))


def names_of(text: str, api: str) -> Sequence[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or (api == "llamacpp" and not all(name.isdecimal() for name in names)):
        what = "numbers" if api == "llamacpp" else "names"
        raise SettingsError(f"--adapter-names {text}: give {what} with commas between them")
    return names
