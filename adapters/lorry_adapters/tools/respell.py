"""Renames a text model's modules in an adapter (`lora.spelling`).

Before transformers 4.52 a model with a vision part called them otherwise, and the text model by
itself has names of its own. PEFT passes over a key whose module it does not find.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from lorry_adapters.errors import ToolError
from lorry_adapters.lora.patterns import Budget, SuffixRules
from lorry_adapters.lora.peft_folder import PREFIX, natural, parameter_of
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.spelling import HEAD, LANGUAGE, Spelling, spellings
from lorry_adapters.tools.summary import module_and_kind

_BESIDE: Final = re.compile(
    r"(?:model\.)?\w*(?:vision|visual|image|audio|speech|multi_modal|projector|connector)\w*\."
)
"""Starts of the paths of parts that no text reaches, if the text model's have no prefix."""
_PATTERNS: Final = ("rank_pattern", "alpha_pattern")
_NARROWING: Final = ("exclude_modules", "layers_to_transform", "layers_pattern")


@dataclass(frozen=True, slots=True)
class Respelled:
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    changes: tuple[str, ...]


def respelled(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    wanted: Spelling | None,
    problems: list[str],
) -> Respelled:
    """Return `tensors` by PEFT's keys. `wanted`: the new names; with TEXT, other parts are left
    out. None: present names of wrappers replace older ones, and everything else stays.

    Tensors that have no new names are added to `problems`. Raises ToolError if the requested
    change would change nothing.
    """
    found = set(spellings(tensors))
    if wanted is None and Spelling.OLDER not in found:
        return Respelled(dict(config), dict(tensors), ())
    if len(found) > 1:
        problems.append(
            "its keys are of models of before and after transformers 4.52: save one of them alone"
        )
        return Respelled(dict(config), dict(tensors), ())
    new = wanted or Spelling.WRAPPER
    old = next(iter(found), Spelling.TEXT)
    names = {key: _path(key.removeprefix(PREFIX), old, new) for key in tensors}
    left = [key for key, path in names.items() if path is None]
    kept = {key: PREFIX + path for key, path in names.items() if path is not None}
    if wanted is not None and not left and all(key == name for key, name in kept.items()):
        raise ToolError(
            "its names are those of a text model already, and it has nothing beside"
            if new is Spelling.TEXT
            else "its names are those of a model with other parts already"
        )
    if not kept:
        raise ToolError(f"nothing of it is of a text model: {some(left)}")
    changed = {name: tensors[key] for key, name in kept.items()}
    moved = {
        module_and_kind(key.removeprefix(PREFIX))[0]: module_and_kind(name.removeprefix(PREFIX))[0]
        for key, name in kept.items()
    }
    changes = [f"{len(kept)} keys: the names of {_WHOSE[new]}"]
    if left:
        changes.append(f"{len(left)} keys left out, of parts that no text reaches: {some(left)}")
    return Respelled(
        _config(config, old, new, moved, changed, problems, changes), changed, tuple(changes)
    )


_WHOSE: Final = {
    Spelling.TEXT: "the text model by itself",
    Spelling.WRAPPER: "a model with other parts, as transformers has them since 4.52",
}


def _path(path: str, old: Spelling, new: Spelling) -> str | None:
    """None: it belongs to another part, which the new names do not include."""
    if path.startswith(f"{old}.") and not (old is Spelling.TEXT and _BESIDE.match(path)):
        return new + path.removeprefix(old)
    if path.startswith((f"{HEAD}.", f"{LANGUAGE}{HEAD}.")):
        return path.removeprefix(LANGUAGE)
    if old is Spelling.WRAPPER and path.startswith(LANGUAGE):
        # An adapter for hidden states omits the outermost `model`.
        return path.removeprefix(LANGUAGE) if new is Spelling.TEXT else path
    if new is Spelling.TEXT:
        return None
    return f"model.{path}" if old is Spelling.OLDER else path


def _config(
    config: Mapping[str, Any],
    old: Spelling,
    new: Spelling,
    moved: Mapping[str, str],
    tensors: Iterable[str],
    problems: list[str],
    changes: list[str],
) -> dict[str, Any]:
    """Return the config with its names of modules changed like the keys. `moved`: the modules of
    the file, by their old paths."""

    def renamed(name: object) -> object:
        # A name without the text model's path is the end of one, which does not change.
        if not isinstance(name, str) or not f"{name}.".startswith((f"{old}.", LANGUAGE)):
            return name
        path = _path(f"{name}.", old, new)
        return name if path is None else path[:-1]

    made = dict(config)
    for key in ("modules_to_save", "target_parameters"):
        if isinstance(made.get(key), list):
            made[key] = [renamed(name) for name in made[key]]
    tokens = made.get("trainable_token_indices")
    if isinstance(tokens, dict):
        made["trainable_token_indices"] = {renamed(name): ids for name, ids in tokens.items()}
    targets = made.get("target_modules")
    if isinstance(targets, list) and old is not Spelling.TEXT:
        targets = made["target_modules"] = [renamed(name) for name in targets]
    if targets and not _means_the_same(made, old, new):
        mine = _targeted(made, tensors)
        made.update({**dict.fromkeys(_NARROWING), "target_modules": mine})
        changes.append(f"target_modules: the {len(mine)} modules of these keys")
        inner = made.get("feedforward_modules")
        if isinstance(inner, list):
            ends = tuple(f".{name}" for name in inner)
            made["feedforward_modules"] = [name for name in mine if f".{name}".endswith(ends)]
    for key in _PATTERNS:
        before = made.get(key)
        if isinstance(before, dict) and before:
            made[key] = {renamed(name): value for name, value in before.items()}
            problems.extend(_unlike(key, before, made[key], moved))
    return made


def _means_the_same(config: Mapping[str, Any], old: Spelling, new: Spelling) -> bool:
    """Return whether the targets select the same modules under the new names as under the old."""
    targets, left_out = config.get("target_modules"), config.get("exclude_modules")
    if old is Spelling.TEXT and new is not Spelling.TEXT:
        return False  # other parts may have a q_proj, too
    if isinstance(left_out, str) and left_out and new is not Spelling.TEXT:
        return False
    if isinstance(targets, str):
        return targets.lower() == "all-linear"
    return not any(LANGUAGE in f"{name}." for name in targets or [] if new is Spelling.TEXT)


def _targeted(config: Mapping[str, Any], tensors: Iterable[str]) -> list[str]:
    """Return the modules with tensors of the method itself."""
    found = set()
    for key in tensors:
        module, kind = module_and_kind(key.removeprefix(PREFIX))
        saved = kind.startswith(("full ", "token_adapter."))
        if not saved and parameter_of(module, config.get("target_parameters")) is None:
            found.add(module)
    return sorted(found, key=natural)


def _unlike(
    key: str, before: Mapping[str, Any], after: Mapping[Any, Any], moved: Mapping[str, str]
) -> Iterable[str]:
    was, now = SuffixRules(before, where=key), SuffixRules(after, where=key)
    budget = Budget()
    lost = [path for path, new in moved.items() if was.find(path, budget) != now.find(new, budget)]
    if lost:
        yield (
            f"{key} is {shown(before)}, which would mean other modules under the new names "
            f"({some(lost)}): write it with names that end alike, as 'self_attn.q_proj'"
        )
