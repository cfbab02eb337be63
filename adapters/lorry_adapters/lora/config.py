"""`adapter_config.json` -> `AdapterSpec`: what an adapter asks for, or why it is refused.

Whatever a config says either means exactly what PEFT means by it, or is refused by name;
nothing that has a meaning is ignored. What the fields then select is `spec.py`.

The bytes come from strangers: any of them gives an `AdapterSpec` or `InvalidAdapter`, soon.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.patterns import Pattern, SuffixRules
from lorry_adapters.lora.problems import refusal, shown
from lorry_adapters.lora.spec import AdapterSpec, targeted

__all__ = ["MAX_CONFIG", "AdapterSpec", "parse_config", "targeted"]

MAX_CONFIG: Final = 1 << 20
"""Bytes. A rank for every module of the largest models takes a tenth of it."""

MAX_RANK: Final = 1 << 16
MAX_ALPHA: Final = 1e6

_ALL_LINEAR: Final = "all-linear"
_PEFT_DEFAULT: Final = 8
"""PEFT's own default of both `r` and `lora_alpha`, for a config that leaves them out."""

_SHORTENED: Final = 20
"""From this many targets on, PEFT replaces them by the shortest telling suffixes."""

_HARMLESS: Final = frozenset(
    {
        "auto_mapping",  # the class of the base, for a hub page
        "corda_config",  # only with init_lora_weights "corda", refused below
        "eva_config",
        "inference_mode",
        "lora_dropout",  # training only
        "lora_ga_config",
        "megatron_core",  # a module's name, used with megatron_config
        "peft_version",
        "qalora_group_size",  # used with use_qalora
        "revision",
        "runtime_config",
    }
)

_NOT_SERVED: Final = {
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "arrow_config": "Arrow routing",
    "ensure_weight_tying": "tied adapters",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "loftq_config": "LoftQ",
    "lora_bias": "a bias on lora_B",
    "megatron_config": "Megatron",
    "modules_to_save": "full weights beside the LoRA (modules_to_save)",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "trainable_token_indices": "trainable tokens",
    "use_bdlora": "block-diagonal LoRA (BD-LoRA)",
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "velora_config": "VeLoRA",
}

_SAME_BASE_INITS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Start values that leave the base's weights as they are: once trained, plain LoRA."""

_NEW_BASE_INITS: Final = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
"""Start values that are taken out of the base's weights, which the served base still has."""


def parse_config(data: bytes) -> AdapterSpec:
    """Raises InvalidAdapter with every problem found, and nothing else."""
    return _Parser(_read_json(data)).spec()


class _Duplicate(ValueError):
    pass


def _read_json(data: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise _Duplicate(f"the key {shown(key)} stands in it twice")
            found[key] = value
        return found

    def no_constant(name: str) -> float:
        raise _Duplicate(f"{name} is not JSON")

    if len(data) > MAX_CONFIG:
        raise InvalidAdapter(
            [f"adapter_config.json has {len(data)} bytes, more than {MAX_CONFIG}: not a config"]
        )
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant
        )
    except UnicodeDecodeError:
        raise InvalidAdapter(["adapter_config.json is not UTF-8 text"]) from None
    except RecursionError:
        raise InvalidAdapter(["adapter_config.json is nested too deeply"]) from None
    except ValueError as error:
        raise InvalidAdapter([f"adapter_config.json cannot be read as JSON: {error}"]) from None
    if not isinstance(value, dict):
        raise InvalidAdapter([f"adapter_config.json is {shown(value)}, not a JSON object"])
    return value


def _means_something(value: object) -> bool:
    return value not in (None, False, "", 0) and value != [] and value != {}


class _Parser:
    """Takes the fields out of a config one by one and collects what is wrong with them."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields
        self._taken: set[str] = set()
        self._problems: list[str] = []

    def spec(self) -> AdapterSpec:
        self._kind()
        self._initialisation()
        r = self._take("r", _rank, _PEFT_DEFAULT, required=True)
        alpha = self._take("lora_alpha", _alpha, float(_PEFT_DEFAULT), required=True)
        use_rslora = self._take("use_rslora", _boolean, False)
        fan_in_fan_out = self._take("fan_in_fan_out", _boolean, False)
        base_model = self._take("base_model_name_or_path", _name, None)
        target_modules = self._take("target_modules", _names, ())
        exclude_modules = self._take("exclude_modules", _names, ())
        layers = self._take("layers_to_transform", _indices, None)
        layers_pattern = self._take("layers_pattern", _plain_names, ())
        rank_pattern = self._take("rank_pattern", _mapping(_rank), {})
        alpha_pattern = self._take("alpha_pattern", _mapping(_alpha), {})
        self._targets(target_modules, layers, layers_pattern)
        target = self._matcher("target_modules", target_modules)
        exclude = self._matcher("exclude_modules", exclude_modules, regex=True)
        ranks = self._rules("rank_pattern", rank_pattern)
        alphas = self._rules("alpha_pattern", alpha_pattern)
        self._refuse_the_rest()
        if self._problems:
            raise refusal(self._problems)
        assert exclude is not None
        return AdapterSpec(
            peft_type="LORA",
            base_model=base_model,
            r=r,
            lora_alpha=alpha,
            use_rslora=use_rslora,
            rank_pattern=rank_pattern,
            alpha_pattern=alpha_pattern,
            target_modules=target_modules,
            exclude_modules=exclude_modules,
            layers_to_transform=layers,
            layers_pattern=layers_pattern,
            fan_in_fan_out=fan_in_fan_out,
            _target=target,
            _exclude=exclude,
            _ranks=ranks,
            _alphas=alphas,
        )

    def _take(
        self, key: str, check: Callable[[Any], Any], default: Any, *, required: bool = False
    ) -> Any:
        """The checked value, or `default` where the key is missing, null or wrong."""
        self._taken.add(key)
        value = self._fields.get(key)
        if value is None:
            if required and key in self._fields:
                self._problems.append(f"{key} is null")
            return default
        try:
            return check(value)
        except _Wrong as wrong:
            self._problems.append(f"{key} is {shown(value)}: {wrong}")
            return default

    def _kind(self) -> None:
        self._taken |= {"peft_type", "task_type", "bias"}
        peft_type = self._fields.get("peft_type")
        if peft_type is None:
            self._problems.append("peft_type is missing: is this a PEFT adapter's config?")
        elif peft_type != "LORA":
            self._problems.append(
                f"adapters of peft_type {shown(peft_type)} are not served yet; LORA is"
            )
        task_type = self._fields.get("task_type")
        if task_type not in (None, "CAUSAL_LM"):
            self._problems.append(
                f"adapters of task_type {shown(task_type)} are not served; CAUSAL_LM is"
            )
        bias = self._fields.get("bias")
        if bias not in (None, "none"):
            self._problems.append(f"trained biases (bias {shown(bias)}) are not served yet")

    def _initialisation(self) -> None:
        self._taken.add("init_lora_weights")
        value = self._fields.get("init_lora_weights")
        if value is None or isinstance(value, bool):
            return
        text = value.lower() if isinstance(value, str) else ""
        if text in _SAME_BASE_INITS:
            return
        for start, name in _NEW_BASE_INITS.items():
            if text.startswith(start):
                self._problems.append(
                    f"{name} (init_lora_weights {shown(value)}) changes the base's own weights "
                    "and is not served: save the adapter again as plain LoRA, with "
                    "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
                )
                return
        self._problems.append(f"init_lora_weights {shown(value)} is not served yet")

    def _targets(
        self, targets: tuple[str, ...] | str, layers: frozenset[int] | None, pattern: Iterable[str]
    ) -> None:
        if not targets and _complains_of(self._problems, "target_modules"):
            return
        if not targets:
            self._problems.append(
                "target_modules names no module: list those that the adapter was trained on"
            )
        elif isinstance(targets, str):
            if layers is not None:
                self._problems.append(
                    "layers_to_transform cannot be combined with target_modules as one string"
                )
        elif (
            # Whether a whole path outweighs layers_to_transform then depends on PEFT's
            # version: it may have been shortened to a suffix, which does not.
            layers is not None
            and len(targets) >= _SHORTENED
            and any(re.search(r"\.\d+\.", target) for target in targets)
        ):
            self._problems.append(
                "target_modules names modules of single layers and layers_to_transform "
                "layers again: leave one of the two out"
            )
        if pattern and self._fields.get("layers_to_transform") is None:
            self._problems.append("layers_pattern is set and layers_to_transform is not")

    def _matcher(
        self, key: str, value: tuple[str, ...] | str, *, regex: bool = False
    ) -> Pattern | frozenset[str] | None:
        if not isinstance(value, str):
            return frozenset(value)
        if value.lower() == _ALL_LINEAR and not regex:
            return None
        if not value:
            return frozenset()
        try:
            return Pattern(value, where=key)
        except InvalidAdapter as error:
            self._problems.extend(error.problems)
            return frozenset()

    def _rules(self, key: str, values: Mapping[str, Any]) -> SuffixRules[Any]:
        try:
            return SuffixRules(values, where=key)
        except InvalidAdapter as error:
            self._problems.extend(error.problems)
            return SuffixRules({}, where=key)

    def _refuse_the_rest(self) -> None:
        for key, value in self._fields.items():
            if key in self._taken or key in _HARMLESS or not _means_something(value):
                continue
            name = _NOT_SERVED.get(key)
            if name is not None:
                self._problems.append(f"{name} is not served yet: {key} is {shown(value)}")
            else:
                self._problems.append(f"unknown key {shown(key)} with the value {shown(value)}")


def _complains_of(problems: Iterable[str], key: str) -> bool:
    return any(problem.startswith(key) for problem in problems)


class _Wrong(Exception):
    """What a value should have been."""


def _rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise _Wrong(f"must be a whole number from 1 to {MAX_RANK}")
    return value


def _alpha(value: Any) -> float:
    # The bound comes first: a huge int does not convert, and NaN is within no bounds.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Wrong("must be a number")
    if not -MAX_ALPHA <= value <= MAX_ALPHA:
        raise _Wrong(f"must be at most {MAX_ALPHA:g} in magnitude")
    return float(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("must be true or false")
    return value


def _name(value: Any) -> str | None:
    if not isinstance(value, str) or len(value) > 1024 or not _encodable(value):
        raise _Wrong("must be a string of at most 1024 characters")
    return value or None


def _encodable(text: str) -> bool:
    """JSON can escape half a surrogate pair, which no file or answer could hold."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _names(value: Any) -> tuple[str, ...] | str:
    if isinstance(value, str) and _encodable(value):
        return value
    if not isinstance(value, list) or not all(
        isinstance(one, str) and one and _encodable(one) for one in value
    ):
        raise _Wrong("must be a list of module names, or one string")
    return tuple(value)


def _plain_names(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) and value else value or []
    if not isinstance(names, list) or not all(
        isinstance(one, str) and re.fullmatch(r"[A-Za-z0-9_.]{1,256}", one) for one in names
    ):
        raise _Wrong('must be plain names of module lists, as "layers" or "h"')
    return tuple(names)


def _indices(value: Any) -> frozenset[int] | None:
    layers = [value] if isinstance(value, int) else value
    if not isinstance(layers, list) or not all(
        isinstance(one, int) and not isinstance(one, bool) for one in layers
    ):
        raise _Wrong("must be a layer's index or a list of them")
    return frozenset(layers) if layers else None


def _mapping(check: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def checked(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _Wrong("must be an object of module names and numbers")
        found = {}
        for key, number in value.items():
            if not key or not _encodable(key):
                raise _Wrong(f"{shown(key)} names no module")
            try:
                found[key] = check(number)
            except _Wrong as wrong:
                raise _Wrong(f"{shown(key)} {wrong}") from None
        return found

    return checked
