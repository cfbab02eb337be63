"""The folder of an adapter as somebody left it, and what can have become of it.

It starts as a plain LoRA that PEFT saved; each function here gives a change to its config, to
its keys and types, or to what lies beside it. `wild.py` says who leaves which.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save

from support.bad_uploads import CONFIG, WEIGHTS, zip_of

PREFIX = "base_model.model."


@dataclass
class Left:
    """A folder that somebody left."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    base: Mapping[str, torch.Tensor]
    """The base's own weights."""
    beside: dict[str, bytes] = field(default_factory=dict)
    folder: str = ""
    weights: str | None = WEIGHTS
    """Their file's name; None: there is none."""
    metadata: bool = True
    packed: Callable[[Mapping[str, bytes]], bytes] = zip_of
    encoding: str = "utf-8"
    """Of the config."""

    def upload(self) -> bytes:
        files = {CONFIG: json.dumps(self.config).encode(self.encoding)}
        if self.weights is not None:
            more = {"format": "pt"} if self.metadata else None
            tensors = {key: tensor.contiguous() for key, tensor in self.tensors.items()}
            files[self.weights] = save(tensors, more)
        where = f"{self.folder}/" if self.folder else ""
        return self.packed({**{where + name: data for name, data in files.items()}, **self.beside})

    def rename(self, change: Callable[[str], str]) -> None:
        self.tensors = {change(key): tensor for key, tensor in self.tensors.items()}

    def cast(self, dtype: torch.dtype) -> None:
        self.tensors = {key: tensor.to(dtype) for key, tensor in self.tensors.items()}

    def any_key(self, half: str = "lora_B") -> str:
        return min(key for key in self.tensors if half in key)


def config(**fields: Any) -> Callable[[Left], object]:
    return lambda left: left.config.update(fields)


def without(*names: str) -> Callable[[Left], object]:
    return lambda left: [left.config.pop(name, None) for name in names]


def encoded(encoding: str) -> Callable[[Left], object]:
    return lambda left: setattr(left, "encoding", encoding)


def keys(pattern: str) -> Callable[[Left], object]:
    """`pattern` has `{module}` and `{half}`."""

    def renamed(key: str) -> str:
        module, _, half = key.removeprefix(PREFIX).rpartition(".lora_")
        return pattern.format(module=module, half=half.removesuffix(".weight"))

    return lambda left: left.rename(renamed)


def ends(old: str, new: str) -> Callable[[Left], object]:
    """`new` for the keys' end `old`, which some must have."""

    def change(left: Left) -> None:
        assert any(key.endswith(old) for key in left.tensors), old
        left.rename(lambda key: key[: -len(old)] + new if key.endswith(old) else key)

    return change


def named(left: Left) -> None:
    """As in memory, where every parameter has its adapter's name."""
    left.rename(
        lambda key: re.sub(
            r"\.(lora_\w+|ia3_l|trainable_tokens_delta)(\.weight|\.bias)?$", r".\1.default\2", key
        )
    )


def inside(word: str, *, after: str) -> Callable[[Left], object]:
    """A wrapper's `word` in every path that has `after`."""
    return lambda left: left.rename(lambda key: key.replace(after, after + word, 1))


def only(*names: str, **more: Any) -> Callable[[Left], object]:
    def change(left: Left) -> None:
        left.config = {**{name: left.config[name] for name in names}, **more}

    return change


def beside(*names: str, folder: str = "") -> Callable[[Left], object]:
    def change(left: Left) -> None:
        left.folder = folder
        where = f"{folder}/" if folder else ""
        left.beside |= {where + name: b"\x80\x02whatever" for name in names}

    return change


def tensor(value: Callable[[torch.Tensor], torch.Tensor], half: str) -> Callable[[Left], object]:
    def change(left: Left) -> None:
        key = left.any_key(half)
        left.tensors[key] = value(left.tensors[key].clone())

    return change


def every(value: Callable[[torch.Tensor], torch.Tensor], half: str) -> Callable[[Left], object]:
    def change(left: Left) -> None:
        for key in [key for key in left.tensors if half in key]:
            left.tensors[key] = value(left.tensors[key].clone())

    return change


def both(*changes: Callable[[Left], object]) -> Callable[[Left], object]:
    return lambda left: [change(left) for change in changes]


def another(*where: str, name: str = WEIGHTS) -> Callable[[Left], object]:
    """The same adapter once more, in folders below."""

    def change(left: Left) -> None:
        data = save({key: 2 * tensor for key, tensor in left.tensors.items()})
        for folder in where:
            left.beside |= {f"{folder}/{CONFIG}": b"{}", f"{folder}/{name}": data}

    return change


def as_file(name: str | None, **fields: Any) -> Callable[[Left], object]:
    def change(left: Left) -> None:
        left.weights = name
        left.config.update(fields)

    return change


def copies(*names: str) -> Callable[[Left], object]:
    """The base's own tables beside the adapter, as `save_embedding_layers` adds them."""
    return lambda left: left.tensors.update(
        {PREFIX + name: left.base[name].clone() for name in names}
    )


def gzipped(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def packed(how: Callable[[Mapping[str, bytes]], bytes], folder: str) -> Callable[[Left], object]:
    def change(left: Left) -> None:
        left.packed, left.folder = how, folder

    return change


def doubled(
    end: str, *news: str, change: Callable[[torch.Tensor], torch.Tensor] = torch.clone
) -> Callable[[Left], object]:
    """What ends with `end` once more, under other ends."""

    def add(left: Left) -> None:
        for key in [key for key in left.tensors if key.endswith(end)]:
            for new in news:
                left.tensors[key[: -len(end)] + new] = change(left.tensors[key])

    return add
