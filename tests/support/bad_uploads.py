"""Uploads that must be refused: a good adapter, and everything that can be wrong with it."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

Files = dict[str, bytes]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class BadUpload:
    filename: str
    content: bytes
    status: int
    says: str
    """A word that the message or one of the problems must contain, in lower case."""


def zip_of(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tar_of(files: Mapping[str, bytes], *links: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for link in links:
            archive.addfile(link)
    return out.getvalue()


def bad_uploads(folder: Path, *, max_rank: int) -> dict[str, BadUpload]:
    """By name, every refusal that the contract lists. `folder` holds a good adapter."""
    good: Files = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    whole = zip_of(good)

    def with_config(**changes: Any) -> bytes:
        config = {**json.loads(good[CONFIG]), **changes}
        return zip_of({**good, CONFIG: json.dumps(config).encode()})

    def with_weights(content: bytes) -> bytes:
        return zip_of({**good, WEIGHTS: content})

    def with_tensors(change: Callable[[Tensors], None]) -> bytes:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        return with_weights(save(tensors))

    def with_header(change: Callable[[dict[str, Any]], None]) -> bytes:
        header, data = _split(good[WEIGHTS])
        change(header)
        return with_weights(_join(header, data))

    def first(tensors: Mapping[str, Any], part: str = "lora_A") -> str:
        return sorted(name for name in tensors if part in name)[0]

    def wider(tensors: Tensors) -> None:
        name = first(tensors)
        tensors[name] = torch.zeros(tensors[name].shape[0], tensors[name].shape[1] + 1)

    def poison(value: float) -> Callable[[Tensors], None]:
        def change(tensors: Tensors) -> None:
            tensors[first(tensors, "lora_B")][0, 0] = value

        return change

    def integers(tensors: Tensors) -> None:
        tensors[first(tensors)] = torch.zeros(tensors[first(tensors)].shape, dtype=torch.int32)

    def half(tensors: Tensors) -> None:
        del tensors[first(tensors, "lora_B")]

    def stranger(tensors: Tensors) -> None:
        tensors["base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight"] = torch.zeros(
            8, 64
        )

    def renamed(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace("layers", "blocks")] = tensors.pop(name)

    def beyond_the_end(header: dict[str, Any]) -> None:
        entry = header[first(header)]
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = [begin + 10**9, end + 10**9]

    def overlapping(header: dict[str, Any]) -> None:
        header[first(header)]["data_offsets"] = header[first(header, "lora_B")]["data_offsets"]

    def larger_shape(header: dict[str, Any]) -> None:
        header[first(header)]["shape"][0] *= 1000

    def strange_dtype(header: dict[str, Any]) -> None:
        header[first(header)]["dtype"] = "F7"

    def link(kind: bytes) -> tarfile.TarInfo:
        member = tarfile.TarInfo(WEIGHTS)
        member.type = kind
        member.linkname = "/etc/passwd"
        return member

    only_config = {CONFIG: good[CONFIG]}
    pickled = {CONFIG: good[CONFIG], "adapter_model.bin": pickle.dumps({"a": 1})}
    huge_length = struct.pack("<Q", 1 << 60) + b"{}"
    rank = max_rank + 1
    return {
        "not an archive": BadUpload("a.zip", b"this is no archive" * 99, 415, "archive"),
        "nothing at all": BadUpload("a.zip", b"", 415, "empty"),
        "truncated zip": BadUpload("a.zip", whole[: len(whole) // 2], 415, "truncated"),
        "truncated tar": BadUpload("a.tar", tar_of(good)[: len(whole) // 2], 415, "truncated"),
        "climbs out": BadUpload("a.zip", zip_of({**good, "../evil": b"x"}), 415, "../evil"),
        "absolute path": BadUpload("a.tar", tar_of({**good, "/etc/evil": b"x"}), 415, "/etc/evil"),
        "symbolic link": BadUpload(
            "a.tar", tar_of(only_config, link(tarfile.SYMTYPE)), 415, "link"
        ),
        "hard link": BadUpload("a.tar", tar_of(only_config, link(tarfile.LNKTYPE)), 415, "link"),
        "two configs": BadUpload(
            "a.zip", zip_of({**good, f"other/{CONFIG}": good[CONFIG]}), 415, CONFIG
        ),
        "no config": BadUpload("a.zip", zip_of({WEIGHTS: good[WEIGHTS]}), 422, CONFIG),
        "no weights": BadUpload("a.zip", zip_of(only_config), 422, WEIGHTS),
        "pickle only": BadUpload("a.zip", zip_of(pickled), 415, "pickle"),
        "config is no JSON": BadUpload("a.zip", zip_of({**good, CONFIG: b"{'r': 8"}), 422, "json"),
        "config is a list": BadUpload("a.zip", zip_of({**good, CONFIG: b"[]"}), 422, "object"),
        "header length lies": BadUpload("a.zip", with_weights(huge_length), 422, "header"),
        "header is no JSON": BadUpload(
            "a.zip", with_weights(struct.pack("<Q", 8) + b"{{{{{{{{"), 422, "header"
        ),
        "header points beyond the end": BadUpload("a.zip", with_header(beyond_the_end), 422, ""),
        "header overlaps itself": BadUpload("a.zip", with_header(overlapping), 422, ""),
        "header claims a larger shape": BadUpload("a.zip", with_header(larger_shape), 422, ""),
        "header has a strange dtype": BadUpload("a.zip", with_header(strange_dtype), 422, "f7"),
        "weights truncated": BadUpload("a.zip", with_weights(good[WEIGHTS][:-100]), 422, ""),
        "wrong shape": BadUpload("a.zip", with_tensors(wider), 422, "down_proj"),
        "not a number": BadUpload("a.zip", with_tensors(poison(float("nan"))), 422, "finite"),
        "infinite": BadUpload("a.zip", with_tensors(poison(float("inf"))), 422, "finite"),
        "integers": BadUpload("a.zip", with_tensors(integers), 422, "i32"),
        "an A without its B": BadUpload("a.zip", with_tensors(half), 422, "lora_b"),
        "a layer that is not there": BadUpload("a.zip", with_tensors(stranger), 422, "layers.99"),
        "another model's names": BadUpload("a.zip", with_tensors(renamed), 422, "blocks"),
        "matches no module": BadUpload(
            "a.zip", with_config(target_modules=["no_such_proj"]), 422, "no_such_proj"
        ),
        "rank over the limit": BadUpload("a.zip", with_config(r=rank), 422, "rank"),
        "rank not the tensors'": BadUpload("a.zip", with_config(r=4), 422, "rank"),
        "rank is text": BadUpload("a.zip", with_config(r="eight"), 422, "r"),
        "DoRA": BadUpload("a.zip", with_config(use_dora=True), 422, "dora"),
        "bias": BadUpload("a.zip", with_config(bias="some"), 422, "bias"),
        "whole modules": BadUpload(
            "a.zip", with_config(modules_to_save=["lm_head"]), 422, "modules_to_save"
        ),
        "another method": BadUpload("a.zip", with_config(peft_type="XLORA"), 422, "xlora"),
        "tensors of another method": BadUpload("a.zip", with_config(peft_type="IA3"), 422, "ia3"),
        "unknown meaningful key": BadUpload(
            "a.zip", with_config(use_brand_new_thing=True), 422, "use_brand_new_thing"
        ),
    }


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _join(header: Mapping[str, Any], data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data
