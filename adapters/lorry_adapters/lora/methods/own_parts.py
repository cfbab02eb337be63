"""The base's own parts, trained beside an adapter and saved whole with it.

    <module>.weight, <module>.bias        modules_to_save, and everything below those names
    <module>.bias, <linear>.base_layer.bias       bias "all" or "lora_only"
    <embedding>.token_adapter.trainable_tokens_delta   [tokens, width]   trainable_token_indices
    score.weight [labels, width], score.bias      a classifier's head (SEQ_CLS)
    <embedding>.weight, <embedding>.base_layer.weight  from `save_embedding_layers`: a copy of
                                          the base's table, or a trained one

PEFT sets `save_embedding_layers` by itself for a resized vocabulary. It then writes everything
below an embedding's name: a saved module again as `modules_to_save.weight`, the module that it
replaces as `original_module.weight`, and the table below trained tokens as
`token_adapter.base_layer.weight`.

All of these replace the base's numbers, for this adapter's rows only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.config_fields import Fields, Wrong
from lorry_adapters.lora.keys import PREFIX, check_shapes, module_of
from lorry_adapters.lora.methods.own_tensors import OwnParts, shape_of
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.target_modules import Targets
from lorry_adapters.lora.tensor_file import DTYPES, TensorFile

_TOKENS: Final = ".token_adapter.trainable_tokens_delta"
_WRAPPED: Final = re.compile(
    r"(?P<module>.+?)(?:\.(?P<trained>modules_to_save)(?:\.[^.]+)?|\.(?P<spare>original_module)"
    r"|(?:\.token_adapter)?\.(?P<below>base_layer))?"
)
"""A path in the file, with PEFT's wrappers around the base's module."""
_BIASES: Final = ("none", "all", "lora_only")
_SCORES: Final = ("score", "classifier")
"""transformers' names for the head of a classifier."""


@dataclass(frozen=True, slots=True)
class OwnPartsFields:
    """The config's fields about the base's own parts."""

    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    token_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By the name of the embedding; "" is the input embedding."""
    tied: bool = False
    """ensure_weight_tying."""
    classifies: bool = False
    names: frozenset[str] = field(init=False, repr=False, compare=False)
    """modules_to_save as a set: an untrusted config may list very many."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(self.modules_to_save))

    @classmethod
    def read(cls, fields: Fields) -> OwnPartsFields:
        return cls(
            bias=fields.take("bias", _bias, "none"),
            modules_to_save=tuple(fields.take("modules_to_save", check.listed("module names"), ())),
            token_ids=fields.take("trainable_token_indices", _token_indices, {}),
            tied=fields.take("ensure_weight_tying", check.boolean, False),
            classifies=fields.raw("task_type") == "SEQ_CLS",
        )

    def saves(self, module: str) -> bool:
        """Return whether the path, or a parent's, ends with one of the names. This is PEFT's
        rule."""
        return not self.names.isdisjoint(_ends(module))


def read_own_parts(
    wanted: OwnPartsFields,
    targets: Targets | None,
    file: TensorFile,
    layout: BaseLayout,
    keys: Iterable[str],
    problems: list[str],
) -> OwnParts:
    """Find the base's own parts. `keys` are the keys that no parameter of the method has."""
    own = OwnParts(file, layout, wanted.tied)
    missing_tokens = dict(wanted.token_ids)
    rows = []
    for key in keys:
        if key.endswith(_TOKENS) or f"{_TOKENS}." in key:
            rows.append(key)
            continue
        path, _, parameter = key.rpartition(".")
        if wanted.classifies and _is_score(path) and parameter in ("weight", "bias"):
            own.score[parameter] = key
            continue
        wrapped = _WRAPPED.fullmatch(path)
        module = None if wrapped is None else module_of(wrapped["module"], layout)
        if wrapped is None or module is None or parameter not in ("weight", "bias"):
            own.unknown.append(key)
            continue
        saved = wanted.saves(module.name)
        table = module.name in (layout.input_embedding, layout.output_embedding)
        if saved and wrapped["spare"]:
            continue  # the base's module, which the saved one replaces
        if saved and not wrapped["below"]:
            own.saved.add(module.name)
        elif parameter == "bias" and wanted.bias != "none":
            pass
        elif not table or wrapped["spare"]:
            own.unknown.append(key)
            continue
        place = own.weights if parameter == "weight" else own.biases
        twin = place.setdefault(module.name, key)
        if twin != key and saved:
            own.same.append((twin, key))
        elif twin != key:
            problems.append(f"{shown(key)} and {shown(twin)} name the same tensor")
        _check(own, key, module, parameter, problems)
    # The table's rows first: a tied head may repeat them.
    for key in sorted(rows, key=lambda key: layout.input_embedding != _module_name(key, layout)):
        _tokens(own, missing_tokens, key, layout, problems)
    for name in own.biases.keys() & own.weights.keys():
        sizes = [file.entries[keys[name]].shape[:1] for keys in (own.weights, own.biases)]
        if layout.modules[name].kind is ModuleKind.LINEAR and sizes[0] != sizes[1]:
            problems.append(f"{shown(name)} has a weight and a bias of different sizes: {sizes}")
    if wanted.classifies:
        _check_score(own, layout, problems)
    if wanted.names:
        problems.extend(_not_saved(wanted, own))
    for name, ids in missing_tokens.items():
        if _shares_rows(own, name, ids):
            continue
        problems.append(
            f"trainable_token_indices names {shown(name or 'the input embedding')}, but the file "
            "has no rows for it"
        )
    if wanted.bias != "none" and not own.biases and targets is not None:
        # PEFT also writes `all` for bases without any bias.
        biased = [
            m.name for m in layout.modules.values() if m.bias and m.kind is not ModuleKind.OTHER
        ]
        if biased and wanted.bias == "all":
            problems.append(f"bias is {shown(wanted.bias)}, but the file has none: {some(biased)}")
    return own


def _ends(module: str) -> Iterator[str]:
    """Yield all names to save that match a module: the ends of its path and of its parents'."""
    path = module
    while path:
        yield from (path[at:] for at in range(len(path)))
        path = path.rpartition(".")[0]


def _not_saved(wanted: OwnPartsFields, own: OwnParts) -> Iterator[str]:
    """Yield a problem for each module to save that is missing from the file. PEFT ignores names
    that no module of the base has."""
    there = {end for module in own.layout.modules for end in _ends(module)}
    saved = {end for module in own.saved for end in _ends(module)}
    for name in wanted.modules_to_save:
        of_classifier = wanted.classifies and name in _SCORES
        if name in there and name not in saved and not of_classifier:
            yield f"modules_to_save names {shown(name)}, but the file has no such module"


def _module_name(key: str, layout: BaseLayout) -> str | None:
    module = module_of(key.partition(_TOKENS)[0], layout)
    return None if module is None else module.name


def _is_score(path: str) -> bool:
    inner = path.removesuffix(".default").removesuffix(".modules_to_save")
    return inner.removeprefix(PREFIX) in _SCORES


def _check_score(own: OwnParts, layout: BaseLayout, problems: list[str]) -> None:
    if "weight" not in own.score:
        problems.append(
            "task_type is SEQ_CLS, but the file has no score.weight, the classifier's head: save "
            'it with modules_to_save=["score"]'
        )
        return
    width = 0
    if layout.output_embedding is not None:
        width = layout.modules[layout.output_embedding].in_features
    key = own.score["weight"]
    shape = own.file.entries[key].shape
    if len(shape) != 2 or not shape[0] or shape[1] != width:
        problems.append(f"{shown(key)} is {list(shape)}; this base needs [labels, {width}]")
    elif "bias" in own.score:
        check_shapes(own.file, {own.score["bias"]: (shape[0],)}, problems)


def _tokens(
    own: OwnParts,
    missing: dict[str, tuple[int, ...]],
    key: str,
    layout: BaseLayout,
    problems: list[str],
) -> None:
    module = module_of(key.partition(_TOKENS)[0], layout)
    if module is None:
        own.unknown.append(key)
        return
    name = next((n for n in missing if n and module.name.endswith(n)), None)
    if name is None and "" in missing and module.name == layout.input_embedding:
        name = ""
    twin = own.tokens.get(layout.input_embedding or "")
    if name is None and layout.tied and twin and module.name == layout.output_embedding:
        own.same.append((twin[0], key))
        return
    if name is None:
        problems.append(f"{shown(key)}: trainable_token_indices does not name this module")
        return
    ids = missing.pop(name)
    check_rows(own.file, key, module, ids, "trainable_token_indices", problems)
    own.tokens[module.name] = (key, ids)


def _shares_rows(own: OwnParts, name: str, ids: tuple[int, ...]) -> bool:
    """Return whether a head shares its rows with the table. PEFT saves those once."""
    table, head = own.layout.input_embedding, own.layout.output_embedding
    if not own.layout.tied or table is None or head is None or not name:
        return False
    return head.endswith(name) and table in own.tokens and own.tokens[table][1] == ids


def check_rows(
    file: TensorFile,
    key: str,
    module: BaseModule,
    ids: Sequence[int],
    field: str,
    problems: list[str],
) -> None:
    """Check one row per token, of a table or a head. `field` is the config's field that lists
    them."""
    is_table = module.kind is ModuleKind.EMBEDDING
    vocabulary = module.in_features if is_table else module.out_features
    width = module.out_features if is_table else module.in_features
    shape = file.entries[key].shape
    if shape != (len(ids), width):
        problems.append(f"{shown(key)} is {list(shape)}; this needs [{len(ids)}, {width}]")
    beyond = [str(one) for one in ids if one >= vocabulary]
    if beyond:
        problems.append(f"{field}: the base has {vocabulary} tokens, not {some(beyond)}")


def _check(
    own: OwnParts, key: str, module: BaseModule, parameter: str, problems: list[str]
) -> None:
    entry = own.file.entries[key]
    if entry.dtype not in DTYPES:
        problems.append(
            f"{shown(key)} is {entry.dtype}; adapters are served in {', '.join(DTYPES)}"
        )
    if parameter == "bias" and not module.bias:
        problems.append(f"{shown(key)}: {shown(module.name)} of this base has no bias")
    if not own.is_shorter_table(module, parameter, entry.shape):
        check_shapes(own.file, {key: shape_of(module, parameter)}, problems)


def _bias(value: Any) -> str:
    if value not in _BIASES:
        raise Wrong(f"must be one of {', '.join(_BIASES)}")
    return str(value)


def _token_indices(value: Any) -> dict[str, tuple[int, ...]]:
    if isinstance(value, dict):
        found = {}
        for name, ids in value.items():
            if not isinstance(name, str) or not name:
                raise Wrong(f"{shown(name)} names no module")
            found[name] = check.token_ids(ids)
        return found
    ids = check.token_ids(value)
    return {"": ids} if ids else {}
