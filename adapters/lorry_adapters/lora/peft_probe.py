"""Measures how PEFT's own layers change a linear, once for each linear when an adapter is loaded.

`PeftProbe` holds PEFT's layers around linears without weights. To measure one, it lends that layer
the base's weight and runs it on the unit vectors. `Measured` keeps the change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseModule, ModuleKind
from lorry_adapters.lora.effects import Delta, EffectTarget, Indivisible
from lorry_adapters.lora.low_rank import factors
from lorry_adapters.lora.problems import shown, some

_TOLERANCE: Final = 1e-3
"""Largest difference between a layer and its measured change, relative to the largest output."""


class Unbuildable(Exception):
    """PEFT cannot build the layers from the config and the file."""


class PeftProbe:
    """PEFT's layers around linears without weights."""

    def __init__(
        self,
        peft_type: str,
        values: Mapping[str, Any],
        modules: Sequence[BaseModule],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """`values`: fields of PEFT's config class. Raises Unbuildable."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model, set_peft_model_state_dict

        self.peft_type = peft_type
        skeleton = _skeleton(modules)
        config_class: Callable[..., Any] = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                config = config_class(
                    **values,
                    target_modules=[module.name for module in modules],
                    inference_mode=True,
                )
                model = get_peft_model(skeleton, config)
                result = set_peft_model_state_dict(model, dict(tensors))
        except Exception as error:
            # The config is untrusted, so whatever PEFT raises is the config's fault.
            raise Unbuildable(
                f"PEFT cannot build {peft_type} from this config and file: "
                f"{shown(str(error).splitlines()[0] if str(error) else type(error).__name__)}"
            ) from error
        missing = truly_missing(result.missing_keys, model)
        if result.unexpected_keys or missing:
            raise Unbuildable(
                "the file's tensors are not those of its config: "
                f"unexpected {some(result.unexpected_keys) or 'none'}, "
                f"missing {some(missing) or 'none'}"
            )
        model.eval().requires_grad_(False)
        self._model = model
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())

    def try_out(self, modules: Sequence[BaseModule]) -> None:
        """Measure one linear of each shape, with random weights. Raises Unbuildable."""
        shapes = {(module.out_features, module.in_features): module.name for module in modules}
        for name in shapes.values():
            try:
                self.measure(name, self._weight_like(name))
            except InvalidAdapter as error:
                raise Unbuildable(error.message) from error
            except Exception as error:
                raise Unbuildable(
                    f"PEFT cannot run {self.peft_type} on {shown(name)}: "
                    f"{shown(str(error).splitlines()[0] if str(error) else type(error).__name__)}"
                ) from error

    def changes_nothing(self, name: str) -> bool:
        """Return true if the layer leaves random weights unchanged."""
        return not any(change.any() for change in self.measure(name, self._weight_like(name)))

    def _weight_like(self, name: str) -> Tensor:
        bare = self._model.base_model.model.get_submodule(name).get_base_layer()
        weight = bare.weight if isinstance(bare, nn.Linear) else bare.weight.T
        return torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * 0.02

    def measure(
        self, name: str, weight_OI: Tensor, bias_O: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return D `[O, I]` and e `[O]` of one linear, given its weight and bias in the base.

        The bias matters: RoAd rotates the whole output, including the base's bias.
        """
        layer = self._model.base_model.model.get_submodule(name)
        bare = layer.get_base_layer()
        light, no_bias = bare.weight, bare.bias
        outputs, inputs = weight_OI.shape
        # GPT-2 stores its weights transposed.
        stored = weight_OI if isinstance(bare, nn.Linear) else weight_OI.T.contiguous()
        base_O = torch.zeros(outputs) if bias_O is None else bias_O
        probe_TI = torch.randn(4, inputs, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            bare.weight = nn.Parameter(stored, requires_grad=False)
            if no_bias is not None:
                bare.bias = nn.Parameter(base_O, requires_grad=False)
            try:
                # One call: most of these layers compute their whole change again in each call.
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
                    f"{self.peft_type}: the output of {shown(name)} is not linear in its input, so "
                    "it cannot be served as a change of its weight"
                ]
            )
        return changed_OI - weight_OI, offset_O[0] - base_O


@dataclass(frozen=True, slots=True, eq=False)
class Measured(Indivisible):
    """One linear of such an adapter; D and e are computed when it is bound to the base."""

    peft_probe: PeftProbe
    name: str

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def shared(self) -> tuple[PeftProbe, ...]:
        """Held once for the whole adapter."""
        return (self.peft_probe,)

    def changes_nothing(self) -> bool:
        return self.peft_probe.changes_nothing(self.name)

    def bind(self, base: EffectTarget) -> Delta:
        bias_O = None if base.bias is None else base.bias.detach().float().cpu()
        weight_OI = base.weight().cpu()
        change_OI, offset_O = self.peft_probe.measure(self.name, weight_OI, bias_O)
        # The change is the difference of two weights, with the rounding of both.
        pair = factors(change_OI, float(weight_OI.norm() + change_OI.norm()))
        offset_O = base.held(offset_O)
        if pair is None:
            change_OI = base.held(change_OI)
            return lambda x_MI, y, scale_M1: (x_MI @ change_OI.T + offset_O) * scale_M1
        b_OR, a_RI = (base.held(one) for one in pair)
        return lambda x_MI, y, scale_M1: ((x_MI @ a_RI.T) @ b_OR.T + offset_O) * scale_M1


def _skeleton(modules: Sequence[BaseModule]) -> nn.Module:
    """Make linears at the paths of the base whose weights take no memory: one zero, repeated. They
    have a bias if the base's have one, as some methods check."""
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
    from transformers.pytorch_utils import Conv1D

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


def truly_missing(keys: Sequence[str], model: Any) -> list[str]:
    """Return those of PEFT's `missing_keys` that the file should have contained. PEFT also lists
    the base's own weights, and every name of a shared tensor except the one in the file."""
    state = model.state_dict()
    there = {tensor.data_ptr() for key, tensor in state.items() if key not in set(keys)}
    return [
        key
        for key in keys
        if "base_layer" not in key
        and (model.base_model.prefix in key or ".modules_to_save." in key)
        and (key not in state or state[key].data_ptr() not in there)
    ]
