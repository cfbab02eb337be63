"""The tensors in an adapter's file, sorted by module and parameter.

A key is `<prefix><module>.<parameter>`. The spelling of the parameter depends on the program that
wrote the file:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight            PEFT
    model.layers.0.self_attn.q_proj.lora_A.weight                             no prefix
    base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight    a raw state dict
    base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.weight  torch.compile

A file contains one adapter, so at most one adapter name appears in its keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from lorry_adapters.errors import Problem, Remedy
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.tensor_file import DTYPES, PLACES, TensorFile

PREFIX: Final = "base_model.model."
LINEAR: Final = (ModuleKind.LINEAR, ModuleKind.CONV1D)
WRAPPERS: Final = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
    r"|^module\.|(?<=^base_model\.model\.)module\."
)
"""Components that torch.compile, FSDP, activation checkpointing and data parallelism add to
paths."""
_SEES: Final = re.compile(r"vision|visual|audio|multi_modal_projector")
_PREFIXES: Final = re.compile(rf"^(?:{re.escape(PREFIX)})+")
_ENDS: Final = ("weight", "bias")


@dataclass(slots=True)
class Keys:
    """The result of `sort_keys`."""

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    """Keys by path in the base, then by parameter."""
    rest: list[str] = field(default_factory=list)
    """Keys that are no parameter of the method."""

    def of(self, parameter: str) -> dict[str, str]:
        """Return the keys of one parameter, by module."""
        return {
            module: found[parameter] for module, found in self.modules.items() if parameter in found
        }


def sort_keys(
    file: TensorFile,
    layout: BaseLayout,
    parameters: Iterable[str],
    problems: list[str],
    *,
    places: Iterable[str] = (),
) -> Keys:
    """Sort the keys of a file. `parameters` are names like `lora_A.weight` or `ia3_l`; `places` are
    those that contain indices. Keys of unknown modules and duplicates are added to `problems`."""
    known, whole = frozenset(parameters), frozenset(places)
    stems = "|".join(sorted({re.escape(_stem(one)) for one in known}, key=len, reverse=True))
    pattern = re.compile(
        rf"(?P<module>.+)\.(?P<stem>{stems})(?P<tail>(?:\.[^.]+){{0,2}})", re.ASCII
    )
    keys = Keys()
    names: dict[str | None, str] = {}
    unknown: dict[str, None] = {}
    for key, entry in file.entries.items():
        match = pattern.fullmatch(key)
        parameter, name = _read_tail(match, known) if match else (None, None)
        if match is None or parameter is None:
            keys.rest.append(key)
            continue
        allowed = PLACES if parameter in whole else DTYPES
        if entry.dtype not in allowed:
            problems.append(
                f"{shown(key)} is {entry.dtype}; adapters are served in {', '.join(allowed)}"
            )
        names.setdefault(name, match["stem"])
        module = module_of(match["module"], layout)
        if module is None:
            unknown[match["module"].removeprefix(PREFIX)] = None
            continue
        mine = keys.modules.setdefault(module.name, {})
        twin = mine.setdefault(parameter, key)
        if twin != key:
            problems.append(f"{shown(key)} and {shown(twin)} name the same tensor")
    if len(names) > 1:
        every = sorted(f"{stem}.{name}" if name else stem for name, stem in names.items())
        problems.append(f"the keys name more than one adapter: {some(every)}")
    problems.extend(_unknown_modules(list(unknown), bool(keys.modules), layout))
    if not file.entries:
        problems.append("adapter_model.safetensors contains no tensors")
    return keys


def bare_path(path: str) -> str:
    """Return a path without PEFT's prefix and wrappers of a trainer."""
    return _PREFIXES.sub("", WRAPPERS.sub("", path))


def module_of(path: str, layout: BaseLayout) -> BaseModule | None:
    # If the base's own paths began with the prefix, it would be meant literally.
    bare = bare_path(path)
    # An adapter for hidden states was trained on the model without its head.
    for name in (path, bare, f"{layout.body}.{bare}"):
        module = layout.modules.get(layout.called.get(name, name))
        if module is not None:
            return module
    return None


def linear_names(layout: BaseLayout) -> list[str]:
    return [module.name for module in layout.modules.values() if module.kind in LINEAR]


def unexpected(keys: Iterable[str], expected: str) -> Iterator[str]:
    for key in keys:
        if "lora_" in key or "lora" not in expected:
            yield f"{shown(key)}: unexpected key; expected {expected}"
        else:
            yield (
                f"{shown(key)}: weights of the base itself are not served from this adapter; if "
                "they are only copies, save again with "
                "save_pretrained(..., save_embedding_layers=False)"
            )


def check_shapes(
    file: TensorFile, wanted: Mapping[str, tuple[int, ...]], problems: list[str]
) -> None:
    """Add a problem for every shape that differs from `wanted`, which is by key."""
    for key, shape in wanted.items():
        found = file.entries[key].shape
        if found != shape:
            problems.append(f"{shown(key)} is {list(found)}; this base needs {list(shape)}")


def _stem(parameter: str) -> str:
    stem, _, end = parameter.rpartition(".")
    return stem if end in _ENDS else parameter


def _read_tail(match: re.Match[str], known: frozenset[str]) -> tuple[str | None, str | None]:
    """Return the parameter and the adapter's name in a key. The parameter is None if unknown."""
    stem, parts = match["stem"], match["tail"].split(".")[1:]
    end = parts.pop() if parts and parts[-1] in _ENDS else None
    if len(parts) > 1:
        return None, None
    name = parts[0] if parts else None
    if end is not None and f"{stem}.{end}" in known:
        return f"{stem}.{end}", name
    # Some versions wrote `.weight` after parameters that are tensors themselves.
    if stem in known and end in (None, "weight"):
        return stem, name
    return None, None


def _unknown_modules(unknown: list[str], any_known: bool, layout: BaseLayout) -> Iterator[str]:
    if unknown and any_known:
        yield Problem(
            f"the file has {len(unknown)} module{'s' if len(unknown) > 1 else ''} that the base "
            f"{layout.name} does not have: {some(unknown)}",
            Remedy.KEEP_TEXT if any(map(_SEES.search, unknown)) else None,
        )
    elif unknown:
        yield (
            f"no module of the adapter is in the base {layout.name} ({layout.architecture}): "
            f"the adapter has {some(unknown)}; the base has {some(linear_names(layout))}"
        )
