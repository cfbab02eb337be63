"""PEFT's other methods that change linears: PEFT itself says what they do, once, and we keep it.

OFT, HRA, FourierFT, VB-LoRA, ... each have a formula of their own, but all of them make of a
linear y = W x + b another one, y = (W + D) x + b + e. So PEFT's own layer is built around the
base's weight when the adapter is loaded, asked for its answer to every unit vector, and D
and e are served like any delta. Nothing of PEFT runs in a step.

D is as large as the weight that it changes, so there is a bound (`MAX_DENSE`); where it turns
out to be of low rank, two thin matrices are kept instead (`thin`). A method whose answer is not
of this form (checked with random inputs) is refused.

The config is a stranger's, and PEFT builds from it: only its own fields, plain values, and
no sizes that the file's tensors do not have.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.effects import Base, Delta
from lorry_adapters.lora.fields import Fields, means_something
from lorry_adapters.lora.keys import LINEAR
from lorry_adapters.lora.methods.own_parts import OwnPartsFields, read_own_parts
from lorry_adapters.lora.parts import Contents, Parts, SpecBase
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.targets import Targets, read_targets
from lorry_adapters.lora.tensor_file import DTYPES, TensorFile
from lorry_adapters.lora.thin import factors

MEASURED: Final = (
    "BOFT",
    "C3A",
    "DEFT",
    "DELORA",
    "FOURIERFT",
    "GLORA",
    "GRALORA",
    "HIRA",
    "HRA",
    "MISS",
    "OFT",
    "PEANUT",
    "PVERA",
    "RANDLORA",
    "ROAD",
    "TINYLORA",
    "UNILORA",
    "VBLORA",
    "WAVEFT",
)

MAX_DENSE: Final = 4 << 30
"""Bytes of all changed weights in fp32: what an adapter of these methods may come to hold."""

MAX_SIZE: Final = 1024
"""Whole numbers in a config up to this are believed; larger ones must be a tensor's size."""

_TOLERANCE: Final = 1e-3
"""Of the largest answer: how far a measured layer may be from what was measured."""

_TEXT: Final = re.compile(r"[A-Za-z0-9_.:-]{0,64}", re.ASCII)
_SEEDS: Final = ("seed", "key")
_REPLACED: Final = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode",
        "layers_pattern", "layers_to_transform", "modules_to_save", "peft_type", "peft_version",
        "revision", "runtime_config", "target_modules", "task_type",
    }
)  # fmt: skip
"""What we say ourselves, or nobody asks of a served layer."""


@dataclass(frozen=True, slots=True)
class MeasuredSpec(SpecBase):
    """Made by `read_measured` only."""

    targets: Targets
    own: OwnPartsFields
    values: Mapping[str, Any] = field(repr=False)

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> Contents:
        modules: tuple[BaseModule, ...] = ()
        try:
            modules = self.targets.select(layout, Budget())
        except InvalidAdapter as error:
            problems.extend(error.problems)
        before = len(problems)
        self._check_modules(modules, layout, problems)
        self._check_sizes(file, problems)
        for key, entry in file.entries.items():
            if entry.dtype not in DTYPES:
                problems.append(
                    f"{shown(key)} is {entry.dtype}; adapters are served in {', '.join(DTYPES)}"
                )
        names = tuple(module.name for module in modules)
        own_keys = [key for key in file.entries if self._is_own(key, layout)]
        own = read_own_parts(self.own, None, file, layout, own_keys, problems)
        taken = set(own_keys) - set(own.unknown)
        workshop: list[Workshop] = []
        if sound and len(problems) == before:
            try:
                tensors = {key: file.read(key) for key in file.entries if key not in taken}
                workshop.append(Workshop(self, modules, tensors))
                workshop[0].rehearse(modules)
            except Unbuildable as error:
                problems.append(str(error))

        def read() -> Parts:
            parts = Parts()
            for module in modules:
                parts.add(module.name, Measured(workshop[0], module.name))
            own.read(parts)
            return parts

        return Contents(modules=(*names, *own.modules), read=read, labels=own.labels)

    def _is_own(self, key: str, layout: BaseLayout) -> bool:
        path = key.rpartition(".")[0].removeprefix("base_model.model.")
        return path in layout.modules and self.own.saves(path)

    def _check_modules(
        self, modules: Sequence[BaseModule], layout: BaseLayout, problems: list[str]
    ) -> None:
        if not modules:
            problems.append(f"the config matches no module of the base {layout.name}")
        other = [module.name for module in modules if module.kind not in LINEAR]
        if other:
            problems.append(
                f"{self.peft_type} is served on linear modules only, and the config targets "
                f"{some(other)}"
            )
        size = sum(module.in_features * module.out_features * 4 for module in modules)
        if size > MAX_DENSE:
            problems.append(
                f"{self.peft_type} is served as full weights, which would take {size >> 20} MiB "
                f"for these modules; at most {MAX_DENSE >> 20} are taken. Train it as a LoRA, or "
                "convert it to one with peft's convert_to_lora"
            )

    def _check_sizes(self, file: TensorFile, problems: list[str]) -> None:
        largest = max((max(e.shape, default=1) for e in file.entries.values()), default=1)
        for key, value in self.values.items():
            seed = any(word in key for word in _SEEDS)
            if isinstance(value, int) and abs(value) > max(MAX_SIZE, largest) and not seed:
                problems.append(f"{key} is {shown(value)}, and no tensor in the file is that large")


class Unbuildable(Exception):
    """PEFT cannot make the layers from the config and the file."""


class Workshop:
    """PEFT's layers around linears without weights; one at a time gets the base's."""

    def __init__(
        self, spec: MeasuredSpec, modules: Sequence[BaseModule], tensors: Mapping[str, Tensor]
    ) -> None:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model, set_peft_model_state_dict

        self.peft_type = spec.peft_type
        skeleton = _skeleton(modules)
        config_class: Callable[..., Any] = PEFT_TYPE_TO_CONFIG_MAPPING[spec.peft_type]
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                config = config_class(
                    **spec.values,
                    target_modules=[module.name for module in modules],
                    inference_mode=True,
                )
                model = get_peft_model(skeleton, config)
                result = set_peft_model_state_dict(model, dict(tensors))
        except Exception as error:
            # Whatever PEFT raises at a stranger's config, it is the config's fault.
            raise Unbuildable(
                f"PEFT cannot build {spec.peft_type} from this config and file: "
                f"{shown(str(error).splitlines()[0] if str(error) else type(error).__name__)}"
            ) from error
        missing = _missing(result.missing_keys, model)
        if result.unexpected_keys or missing:
            raise Unbuildable(
                "the file's tensors are not those of its config: "
                f"unexpected {some(result.unexpected_keys) or 'none'}, "
                f"missing {some(missing) or 'none'}"
            )
        model.eval().requires_grad_(False)
        self._model = model
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())

    def rehearse(self, modules: Sequence[BaseModule]) -> None:
        """One linear of each shape, around a weight that is none's. Raises Unbuildable."""
        shapes = {(module.out_features, module.in_features): module.name for module in modules}
        for shape, name in shapes.items():
            weight_OI = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 0.02
            try:
                self.measure(name, weight_OI)
            except InvalidAdapter as error:
                raise Unbuildable(error.message) from error
            except Exception as error:
                raise Unbuildable(
                    f"PEFT cannot run {self.peft_type} on {shown(name)}: "
                    f"{shown(str(error).splitlines()[0] if str(error) else type(error).__name__)}"
                ) from error

    def measure(
        self, name: str, weight_OI: Tensor, bias_O: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(D `[O, I]`, e `[O]`) of one linear, whose weight and bias in the base these are.

        The bias counts: RoAd turns the whole answer, and the base's bias with it.
        """
        layer = self._model.base_model.model.get_submodule(name)
        bare = layer.get_base_layer()
        light, no_bias = bare.weight, bare.bias
        outputs, inputs = weight_OI.shape
        # GPT-2's are stored the other way round.
        stored = weight_OI.T.contiguous() if isinstance(bare, Conv1D) else weight_OI
        base_O = torch.zeros(outputs) if bias_O is None else bias_O
        probe_TI = torch.randn(4, inputs, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            bare.weight = nn.Parameter(stored, requires_grad=False)
            if no_bias is not None:
                bare.bias = nn.Parameter(base_O, requires_grad=False)
            try:
                # In one call: most of these layers make their whole change anew at each.
                answer_TO = layer(torch.cat([torch.zeros(1, inputs), torch.eye(inputs), probe_TI]))
            finally:
                bare.weight, bare.bias = light, no_bias
        offset_O, units_IO, probed_TO = answer_TO.split([1, inputs, len(probe_TI)])
        changed_OI = (units_IO - offset_O).T
        expected_TO = probe_TI @ changed_OI.T + offset_O
        worst = float((probed_TO - expected_TO).abs().max())
        assert changed_OI.shape == (outputs, inputs)
        if not worst <= _TOLERANCE * (1 + float(probed_TO.abs().max())):
            raise InvalidAdapter(
                [
                    f"{self.peft_type}: the answer of {shown(name)} is not linear in its input, so "
                    "it cannot be served as a change of its weight"
                ]
            )
        return changed_OI - weight_OI, offset_O[0] - base_O


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One linear of such an adapter; its D and e are found when it meets the base."""

    workshop: Workshop
    name: str

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def shared(self) -> tuple[Workshop, ...]:
        """Held once for the whole adapter."""
        return (self.workshop,)

    def cut(self, start: int, stop: int) -> None:
        return None

    def bind(self, base: Base) -> Delta:
        bias_O = None if base.bias is None else base.bias.detach().float().cpu()
        weight_OI = base.weight().cpu()
        change_OI, offset_O = self.workshop.measure(self.name, weight_OI, bias_O)
        # The change is the difference of two weights, and has the rounding of both.
        pair = factors(change_OI, float(weight_OI.norm() + change_OI.norm()))
        offset_O = base.held(offset_O)
        if pair is None:
            change_OI = base.held(change_OI)
            return lambda x_MI, y, scale_M1: (x_MI @ change_OI.T + offset_O) * scale_M1
        b_OR, a_RI = (base.held(one) for one in pair)
        return lambda x_MI, y, scale_M1: ((x_MI @ a_RI.T) @ b_OR.T + offset_O) * scale_M1


def read_measured(peft_type: str) -> Callable[[Fields], MeasuredSpec]:
    def read(fields: Fields) -> MeasuredSpec:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING

        base_model, task_type = fields.base_model(), fields.task_type()
        targets = read_targets(fields)
        own = OwnPartsFields.read(fields)
        values = {}
        for one in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]):
            if one.name in _REPLACED or one.name in ("bias", "ensure_weight_tying"):
                continue
            value = fields.raw(one.name)
            if value is None:
                continue
            if not _is_plain(value):
                fields.problems.append(f"{one.name} is {shown(value)}: not a value that is served")
            else:
                values[one.name] = value
        fields.refuse_the_rest(frozenset(), {})
        return MeasuredSpec(peft_type, base_model, task_type, targets, own, values)

    return read


def _is_plain(value: Any) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) < 1 << 63
    if isinstance(value, str):
        return _TEXT.fullmatch(value) is not None
    if isinstance(value, list):
        return len(value) <= MAX_SIZE and all(map(_is_plain, value))
    if isinstance(value, dict):
        return not means_something(value) or (
            len(value) <= MAX_SIZE
            and all(isinstance(k, str) and _TEXT.fullmatch(k) for k in value)
            and all(map(_is_plain, value.values()))
        )
    return value is None


def _skeleton(modules: Sequence[BaseModule]) -> nn.Module:
    """Linears at the paths of the base, whose weights take no memory: one zero, repeated.
    They have a bias where the base's have: some methods ask."""
    root = nn.Module()
    for module in modules:
        *parents, leaf = module.name.split(".")
        owner = root
        for part in parents:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.add_module(leaf, _bare(module))
    return root


def _bare(module: BaseModule) -> nn.Module:
    inputs, outputs = module.in_features, module.out_features
    shape = (outputs, inputs)
    linear: nn.Module
    if module.kind is ModuleKind.CONV1D:
        shape = (inputs, outputs)
        with torch.device("meta"):
            linear = Conv1D(outputs, inputs)
    else:
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.zeros(1, 1).expand(shape), requires_grad=False)
    if module.bias or module.kind is ModuleKind.CONV1D:
        linear.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False)
    return linear


def _missing(keys: Sequence[str], model: Any) -> list[str]:
    """PEFT calls the base's own weights missing, too, and each mention of a shared tensor but
    the one that the file has."""
    state = model.state_dict()
    there = {tensor.data_ptr() for key, tensor in state.items() if key not in set(keys)}
    return [
        key
        for key in keys
        if "base_layer" not in key
        and model.base_model.prefix in key
        and (key not in state or state[key].data_ptr() not in there)
    ]
