"""Converts adapters as found in the wild to PEFT folders that PEFT loads completely.

Layouts: keys without PEFT's prefix, or with it twice; the wrappers of a trainer
(`_orig_mod.`, `module.`, ...) in them; an adapter's name in them (`lora_A.default.weight`);
keys of a config that this PEFT does not know and that say nothing; targets left out; names of
modules within a model of other parts (`respell`).

MLX-LM's adapters become PEFT's (`mlx`); experts of another order get PEFT's (`regroup`).

Starts: PiSSA, OLoRA, CorDA and LoRA-GA take their first A0 and B0 out of the base's weights,
W = W_res + s·B0·A0, and are relative to W_res. With A0 and B0 at hand they become plain LoRA,
of twice the rank and the same strength, relative to W:

    s·B·A - s·B0·A0 = s·[B | -B0]·[A ; A0]

as PEFT's `subtract_mutated_init` and `save_pretrained(path_initial_model_for_weight_conversion)`
have it; A0 and B0 are in the folder that was saved before the first step.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lorry_adapters.errors import InvalidAdapter, Problem, Remedy, ToolError
from lorry_adapters.lora.columns import by_rank
from lorry_adapters.lora.keys import WRAPPERS
from lorry_adapters.lora.methods.initialisation import changed_base
from lorry_adapters.lora.methods.lora_method import LORA
from lorry_adapters.lora.methods.method import Method, RefusedMethod
from lorry_adapters.lora.methods.method_table import (
    METHODS,
    REFUSED_METHODS,
    has_virtual_tokens,
    parameter_prefixes,
)
from lorry_adapters.lora.peft_folder import PREFIX, PeftFolder, save
from lorry_adapters.lora.problems import refusal, shown, some
from lorry_adapters.lora.spelling import Spelling
from lorry_adapters.lora.weights import WEIGHTS_FILE
from lorry_adapters.tools import mlx
from lorry_adapters.tools.regroup import in_order, out_of_order, says_order
from lorry_adapters.tools.respell import respelled
from lorry_adapters.tools.tasks import one_task

_INNER: Final = (
    "S_low", "U_low", "V_low", "expert_weights", "expert_weights_prior", "gaussian_var_prior",
    "module_logits", "std_prior", "vector_a", "vector_b",
)  # fmt: skip
"""Last parts of keys of methods that keep several tensors under one parameter's name."""

_PREFIXES: Final = [one for one in map(re.escape, parameter_prefixes()) if one.endswith("_")]
_NAMED: Final = re.compile(
    rf"(?P<start>.+\.(?:{'|'.join(_PREFIXES)})\w+)\.(?P<name>[^.]+)"
    rf"(?P<end>|\.weight|\.bias|\.\d+\.weight|\.(?:{'|'.join(_INNER)}))",
    re.ASCII,
)
_SAVED: Final = re.compile(
    r"(?P<start>.+)\.modules_to_save\.(?P<name>[^.]+)\.(?P<end>.+)", re.ASCII
)
_LEGACY: Final = frozenset({"merge_weights", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"})
"""Keys of old versions and of trainers that are about training, whatever their value."""

_OF_STARTS: Final = ("corda_config", "lora_ga_config", "eva_config", "loftq_config")


@dataclass(frozen=True, slots=True)
class Converted:
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    changes: tuple[str, ...]
    """The differences, for people; empty if nothing had to be changed."""

    def save(self, folder: Path) -> None:
        """Write a new folder, atomically. Raises ToolError."""
        save(folder, self.config, self.tensors)


def convert(
    folder: Path,
    initial: Path | None = None,
    task: int | None = None,
    *,
    experts_grouped: bool = False,
    names: Spelling | None = None,
) -> Converted:
    """Convert a folder.

    `initial`: the folder that was saved before the first step of training. `task`: the task to keep
    of a multitask prompt or of Poly, counted from 0. `experts_grouped`: the columns of lora_B are
    grouped by expert, as Unsloth trained them before 2026.9.6. `names`: the names for the modules
    of a text model, its own (TEXT) or those within a model with other parts; None keeps them,
    except those from before transformers 4.52.

    Raises InvalidAdapter with every reason why it cannot be converted; ToolError if `initial` is
    needed and missing, or if one of the others is superfluous.
    """
    if (folder / mlx.WEIGHTS_FILE).exists() and not (folder / WEIGHTS_FILE).exists():
        config, tensors = mlx.from_mlx(folder)
        return Converted(config, tensors, ("it was MLX-LM's: matrices turned, scale as alpha",))
    with PeftFolder(folder) as source:
        changes: list[str] = []
        problems: list[str] = []
        grouped = out_of_order(source, experts_grouped)
        tensors = _tensors(source, changes, problems, grouped)
        given = source.config
        if grouped or says_order(given):
            given = in_order(given)
            changes.append("the order of the experts' columns: said in auto_mapping")
        config = _config(given, tensors, changes, problems)
        if problems:
            raise refusal(problems)
        other = respelled(config, tensors, names, problems)
        if problems:
            raise refusal(problems)
    config, tensors = other.config, other.tensors
    changes += other.changes
    start = changed_base(config)
    if start == "LoftQ":
        raise ToolError(
            "LoftQ is relative to its own quantized base, which no adapter holds: it cannot be "
            "converted; serve that base"
        )
    if start is not None and initial is None:
        raise ToolError(
            Problem(
                f"{start} is relative to a changed base: to convert it, the adapter as it was "
                "before the first step of training is needed (PEFT's save_pretrained before "
                "training writes it). Without it, train again, or save with "
                "path_initial_model_for_weight_conversion where you trained",
                Remedy.GIVE,
                argument="initial",
            )
        )
    if initial is not None:
        tensors = _subtracted(config, tensors, initial)
        config = _doubled(config)
        changes.append(
            f"{start} is plain LoRA now: the initial adapter is subtracted, the rank doubled"
        )
    if task is not None:
        config, tensors = one_task(config, tensors, task)
        changes.append(f"task {task} alone, as an adapter of its own")
    return Converted(config, tensors, tuple(changes))


def _tensors(
    source: PeftFolder,
    changes: list[str],
    problems: list[str],
    grouped: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Return every tensor under PEFT's key. `grouped`: by key, from `regroup.out_of_order`."""
    tensors: dict[str, Tensor] = {}
    seen: dict[str, list[str]] = {"prefix": [], "wrapper": [], "name": []}
    names: set[str] = set()
    # Prompt tuning and similar methods are not part of the base, and have no prefix.
    bare = has_virtual_tokens(source.peft_type)
    renamed = _renamed(source.config)
    for key in source.entries:
        plain = WRAPPERS.sub("", key)
        if plain != key:
            seen["wrapper"].append(key)
        path = plain
        while path.startswith(PREFIX):
            path = path.removeprefix(PREFIX)
        path, name = _unnamed(path)
        if name is not None:
            names.add(name)
            seen["name"].append(key)
        if renamed is not None:
            (before,), (now,) = (method.parameters for method in renamed)
            path = path.replace(f".{before}", f".{now}")
        new = path if bare else PREFIX + path
        if not bare and (not plain.startswith(PREFIX) or plain.startswith(PREFIX * 2)):
            seen["prefix"].append(key)
        if new in tensors:
            problems.append(f"{shown(key)} and another key both mean {shown(new)}")
        try:
            tensor = source.read(key)
            experts = (grouped or {}).get(key)
            tensors[new] = tensor if experts is None else by_rank(tensor, experts)
        except InvalidAdapter as error:
            problems.extend(error.problems)
    if len(names) > 1:
        problems.append(
            f"the keys name more than one adapter ({some(sorted(names))}): save one of them alone"
        )
    said = {
        "prefix": f"the prefix {PREFIX} in its place",
        "wrapper": "a trainer's wrappers taken out",
        "name": "the adapter's own name taken out",
    }
    changes += [f"{len(keys)} keys: {said[what]}" for what, keys in seen.items() if keys]
    if grouped:
        changes.append(f"{len(grouped)} keys: the columns of each expert in PEFT's order")
    if not tensors and not problems:
        problems.append("the file holds no tensors")
    return tensors


def _unnamed(path: str) -> tuple[str, str | None]:
    """A key without the adapter's name that a raw state dict has in it, and that name."""
    saved = _SAVED.fullmatch(path)
    if saved is not None:
        return f"{saved['start']}.{saved['end']}", saved["name"]
    named = _NAMED.fullmatch(path)
    if named is None or named["name"] in ("weight", "bias", *_INNER) or named["name"].isdigit():
        # DoRA's magnitude is a parameter in files, and a module's `weight` in PEFT's memory.
        return re.sub(r"(\.lora_magnitude_vector)\.weight$", r"\1", path), None
    end = "" if named["start"].endswith(".lora_magnitude_vector") else named["end"]
    return named["start"] + end, named["name"]


def _config(
    given: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    changes: list[str],
    problems: list[str],
) -> dict[str, Any]:
    """Return the config with PEFT's fields only. No meaningful field is lost."""
    config = dict(given)
    modules = _lora_modules(tensors)
    if config.get("peft_type") is None and modules:
        config["peft_type"] = LORA.name
        changes.append(f"peft_type: {LORA.name}, as the tensors are")
    renamed = _renamed(config)
    if renamed is not None:
        config["peft_type"] = renamed[1].name
        changes.append(f"peft_type: {renamed[1].name}, as PEFT calls it now")
    known = _known(config.get("peft_type"))
    if known is None:
        problems.append(f"PEFT knows no peft_type {shown(config.get('peft_type'))}")
        return config
    for key in [key for key in config if key not in known]:
        value = config[key]
        if key == "enable_lora" and isinstance(value, list):
            problems.append(
                "enable_lora is set: its tensors are those of PEFT's old merged linear, which have "
                "no counterpart; train again with target_modules"
            )
        elif key in _LEGACY or value in (None, False, "", 0) or value == [] or value == {}:
            del config[key]
            changes.append(f"{key}: dropped, it is no key of PEFT's and says nothing")
        else:
            problems.append(
                f"{shown(key)} is {shown(value)}: PEFT here knows no such key, and leaving it out "
                "could change the answers"
            )
    targets = config.get("target_modules") or config.get("target_parameters")
    if config.get("peft_type") == LORA.name and modules and not targets:
        config["target_modules"] = modules
        changes.append(f"target_modules: the {len(modules)} modules that the file has")
    config["inference_mode"] = True
    return config


def _renamed(config: Mapping[str, Any]) -> tuple[RefusedMethod, Method] | None:
    """Return the method of a config under its former name, and under its present one."""
    found = REFUSED_METHODS.get(str(config.get("peft_type")))
    return None if found is None or found.now is None else (found, METHODS[found.now])


def _known(peft_type: object) -> set[str] | None:
    """Return the keys of PEFT's config class."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    mapping: Mapping[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    found = next((cls for kind, cls in mapping.items() if str(kind.value) == peft_type), None)
    return None if found is None else {field.name for field in dataclasses.fields(found)}


def _lora_modules(tensors: Mapping[str, Tensor]) -> list[str]:
    end = re.compile(r"\.lora_(?:A\.weight|embedding_A)")
    found = (end.split(key) for key in tensors if end.search(key))
    return sorted(parts[0].removeprefix(PREFIX) for parts in found if parts[1] == "")


def _subtracted(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], initial: Path
) -> dict[str, Tensor]:
    """Replace B and A by [B | -B0] and [A ; A0]; other tensors stay as they are."""
    before = _initial(initial)
    if not any(t.count_nonzero() for key, t in before.tensors.items() if ".lora_B." in key):
        # Any start that leaves the base alone; a config may call PiSSA `true`, so ask the tensors.
        raise ToolError(
            Problem(
                "every lora_B of the initial adapter is zero: there is nothing to subtract",
                Remedy.LEAVE_OUT,
                argument="initial",
            )
        )
    problems = []
    if config.get("target_parameters"):
        problems.append("a start on bare parameters (target_parameters) has no plain form here")
    if config.get("use_dora"):
        problems.append("DoRA's magnitudes are of the changed base: there is no plain form of it")
    for key in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"):
        now_is, then_was = config.get(key) or None, before.config.get(key) or None
        if now_is != then_was:
            problems.append(
                f"{key} is {shown(now_is)}, and {shown(then_was)} in the initial adapter: "
                "it is of another training"
            )
    problems += _not_numbers(config)
    found = dict(tensors)
    halves = [key for key in tensors if key.endswith((".lora_A.weight", ".lora_B.weight"))]
    strange = [key for key in tensors if ".lora_" in key and key not in halves]
    if strange:
        problems.append(f"these have no plain form: {some(strange)}")
    missing = [key for key in halves if key not in before.tensors]
    its = [key for key in before.tensors if key.endswith((".lora_A.weight", ".lora_B.weight"))]
    extra = [key for key in its if key not in tensors]
    if missing:
        problems.append(f"the initial adapter lacks {some(missing)}")
    if extra:
        problems.append(f"the initial adapter has {some(extra)} more")
    for key in set(halves) - set(missing):
        now, then = tensors[key], before.tensors[key]
        if now.shape != then.shape:
            problems.append(
                f"{shown(key)} is {list(now.shape)}, and {list(then.shape)} in the initial adapter"
            )
        elif key.endswith(".lora_A.weight"):
            found[key] = torch.cat([now, then.to(now.dtype)], dim=0)
        else:
            found[key] = torch.cat([now, -then.to(now.dtype)], dim=1)
    if problems:
        raise refusal(problems)
    return found


def _not_numbers(config: Mapping[str, Any]) -> list[str]:
    """Return the problems with doubling the rank."""
    values = {key: config.get(key, 8) for key in ("r", "lora_alpha")}
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        values |= pattern if isinstance(pattern, dict) else {key: pattern}
    return [
        f"{shown(key)} is {shown(value)}: it must be a number"
        for key, value in values.items()
        if isinstance(value, bool) or not isinstance(value, int | float)
    ]


def _initial(folder: Path) -> Converted:
    """The initial adapter in PEFT's layout; its own start is what it is for."""
    changes: list[str] = []
    problems: list[str] = []
    with PeftFolder(folder) as source:
        tensors = _tensors(source, changes, problems)
        config = _config(source.config, tensors, changes, problems)
    if problems:
        label = f"the initial adapter {folder}"
        raise refusal([Problem.within(f"{label}: {problem}", problem) for problem in problems])
    return Converted(config, tensors, ())


def _doubled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Double the rank at the same strength: alpha/r, or alpha/sqrt(r) for rsLoRA."""
    rslora = bool(config.get("use_rslora"))

    def alpha(value: float) -> float:
        if rslora:
            return value * math.sqrt(2)
        return 2 * value

    new = {key: value for key, value in config.items() if key not in _OF_STARTS}
    new["init_lora_weights"] = True
    new["r"] = 2 * config.get("r", 8)
    new["lora_alpha"] = alpha(config.get("lora_alpha", 8))
    for key, change in (("rank_pattern", lambda value: 2 * value), ("alpha_pattern", alpha)):
        if config.get(key):
            new[key] = {name: change(value) for name, value in config[key].items()}
    return new
