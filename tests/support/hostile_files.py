"""Adapters whose two files are the trouble: configs, headers and numbers that nobody trained."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from support.bad_uploads import CONFIG, WEIGHTS, Files
from support.hostile_archives import Hostile

_MIB = 1 << 20
_PRINTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in "[]^-\\&~|")


def safetensors(text: bytes, data: bytes = b"") -> bytes:
    """A file with this header."""
    return struct.pack("<Q", len(text)) + text + data


def empty_tensors(count: int) -> bytes:
    value = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return ("{" + ",".join(f'"{number}":{value}' for number in range(count)) + "}").encode()


def hostile_configs(config: Mapping[str, Any]) -> dict[str, tuple[bytes, str]]:
    """By what they are: the file, and a word of its refusal. `config`: a good one."""

    def changed(**changes: Any) -> bytes:
        return json.dumps({**config, **changes}).encode()

    repeats = "(" * 30 + "a" + "*)*" * 30 + "b"
    counted = "(" * 5 + "." + "{0,60000})" * 5 + "b"
    patterns = {f"m{'x' * (n % 300)}.{n}": 4 for n in range(3000)}
    return {
        "a config of 500,000 brackets": (b"[" * 500_000, "nested"),
        "a config of 300,000 lists": (b"[" + b"[]," * 300_000 + b"[]]", "object"),
        "a rank of a million digits": (b'{"r": ' + b"9" * 1_000_000 + b"}", "digits"),
        "a fraction of a million digits": (b'{"r": 0.' + b"9" * 1_000_000 + b"}", "peft_type"),
        "a base's name of a megabyte": (changed(base_model_name_or_path="x" * 1_000_000), "1024"),
        "60,000 unknown keys": (changed(**{f"k{n}": n + 1 for n in range(60_000)}), "unknown"),
        "60,000 target modules": (
            changed(target_modules=[f"m{n}.x" for n in range(60_000)]),
            "target_modules",
        ),
        "a target of nested repeats": (changed(target_modules=repeats), "target_modules"),
        "a target of counted repeats": (changed(target_modules=counted), "too long to match"),
        "a target of 30 classes": (
            changed(target_modules=f"[{_PRINTED}]*" * 30 + "b"),
            "target_modules",
        ),
        "a target of nested look-aheads": (
            changed(target_modules="(?=.*" * 50 + ")" * 50),
            "target_modules",
        ),
        "3,000 rank patterns": (changed(rank_pattern=patterns, use_dora="x"), "use_dora"),
        "100,000 layers": (changed(layers_to_transform=list(range(100_000)), r=3), "rank"),
    }


def hostile_headers() -> dict[str, tuple[Callable[[], bytes], str]]:
    """By what they are: a file of weights, and a word of its refusal."""
    names = ",".join(f'"{number}":0' for number in range(1_000_000))
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return {
        "a header of 5 million lists": (
            lambda: safetensors(b'{"a":[' + b"[]," * (5 * _MIB) + b"[]]}"),
            "header",
        ),
        "a header of 1.5 million objects": (
            lambda: safetensors(b'{"a":[' + b'{"b":0},' * (3 * _MIB // 2) + b"{}]}"),
            "header",
        ),
        "a header of 7 million numbers": (
            lambda: safetensors(b'{"a":[' + b"0," * (7 * _MIB) + b"0]}"),
            "header",
        ),
        "a header of 250,000 tensors": (lambda: safetensors(empty_tensors(250_000)), "header"),
        "a header of 100,000 tensors": (
            lambda: safetensors(empty_tensors(100_000)),
            "weights of the base itself",
        ),
        "a header of a million names": (
            lambda: safetensors(f"{{{names}}}".encode()),
            "header",
        ),
        "a header of 100 MB": (lambda: safetensors(b" " * (100 * _MIB)), "header"),
        "a header of one name 200,000 times": (
            lambda: safetensors(b"{" + b",".join([b'"a":{}'] * 200_000) + b"}"),
            "header",
        ),
        "a header nested 8 million times": (lambda: safetensors(b"[" * (8 * _MIB)), "header"),
        "a tensor whose name has 7 MB": (
            lambda: safetensors(b'{"' + b"model." * _MIB + b'.lora_A.weight":' + entry + b"}"),
            "name",
        ),
        "a tensor whose name has a million parts": (
            lambda: safetensors(
                b'{"' + b"base_model.model." * 900_000 + b'.lora_A.weight":' + entry + b"}"
            ),
            "name",
        ),
    }


def hostile_files(folder: Path) -> dict[str, Hostile]:
    """Archives with a hostile file in place of one of an adapter's, which lies in `folder`."""
    good: Files = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}

    def of(value: float) -> bytes:
        tensors = load_file(folder / WEIGHTS)
        return save({key: torch.full_like(t, value).float() for key, t in tensors.items()})

    def packed(file: str, make: Callable[[], bytes]) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, content in {**good, file: make()}.items():
                archive.writestr(name, content)
        return out.getvalue()

    weights = hostile_headers()
    for value, says in (("1e+38", "1e+38"), ("7e+04", "7e+04"), ("6e+04", "too strong")):
        weights[f"values of {value}"] = (partial(of, float(value)), says)
    found = {
        name: Hostile(partial(packed, CONFIG, partial(bytes, content)), 422, says)
        for name, (content, says) in hostile_configs(json.loads(good[CONFIG])).items()
    }
    return found | {
        name: Hostile(partial(packed, WEIGHTS, make), 422, says)
        for name, (make, says) in weights.items()
    }
