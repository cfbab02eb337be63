"""The tensors of an adapter's file, sorted by module and by what they are to it.

A key is `<prefix><module>.<parameter>`, and the parameter's own spelling varies with who
wrote the file:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight            PEFT
    model.layers.0.self_attn.q_proj.lora_A.weight                             no prefix
    base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight    a raw state dict
    base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.weight  torch.compile

A file holds one adapter, so one name at most stands between.
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
"""What torch.compile, FSDP, activation checkpointing and data parallel training put into paths."""
_SEES: Final = re.compile(r"vision|visual|audio|multi_modal_projector")
_PREFIXES: Final = re.compile(rf"^(?:{re.escape(PREFIX)})+")
_ENDS: Final = ("weight", "bias")


@dataclass(slots=True)
class Keys:
    """What `sort_keys` found."""

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    """By path in the base, then by parameter: the key."""
    rest: list[str] = field(default_factory=list)
    """Keys that are no parameter of the method's."""

    def of(self, parameter: str) -> dict[str, str]:
        """By module: its key of this parameter, where it has one."""
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
    """`parameters`: as `lora_A.weight` or `ia3_l`; `places`: those of them that hold whole
    numbers. What names no module of the base, and what is there twice, goes to `problems`."""
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
        problems.append("adapter_model.safetensors holds no tensors")
    return keys


def bare_path(path: str) -> str:
    """Without PEFT's prefix and a trainer's wrappers."""
    return _PREFIXES.sub("", WRAPPERS.sub("", path))


def module_of(path: str, layout: BaseLayout) -> BaseModule | None:
    # A base whose own paths began with the prefix would be meant literally.
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
    """`wanted`: by key."""
    for key, shape in wanted.items():
        found = file.entries[key].shape
        if found != shape:
            problems.append(f"{shown(key)} is {list(found)}; this base needs {list(shape)}")


def _stem(parameter: str) -> str:
    stem, _, end = parameter.rpartition(".")
    return stem if end in _ENDS else parameter


def _read_tail(match: re.Match[str], known: frozenset[str]) -> tuple[str | None, str | None]:
    """(parameter, the adapter's name) of a key; no parameter where it is none of `known`."""
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
            f"{layout.name} has not: {some(unknown)}",
            Remedy.KEEP_TEXT if any(map(_SEES.search, unknown)) else None,
        )
    elif unknown:
        yield (
            f"no module of the adapter is in the base {layout.name} ({layout.architecture}): "
            f"the adapter has {some(unknown)}; the base has {some(linear_names(layout))}"
        )
