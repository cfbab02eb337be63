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
from lorry_adapters.lora.matrix_deltas import BoundChange, BoundPair, BoundTurn, Together
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.vector_deltas import Shift

_TOLERANCE: Final = 1e-3
"""Largest difference between a layer and its measured change, relative to the largest output."""

_SAME: Final = 1e-4
"""The same between a layer and the base's answer to a turned input."""
MAX_BLOCK: Final = 128
"""Inputs that are turned together: a change of larger blocks is kept as a whole."""


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
        self._may_turn = True
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
        outputs, inputs = weight_OI.shape
        base_O = torch.zeros(outputs) if bias_O is None else bias_O
        probe_TI = torch.randn(4, inputs, generator=torch.Generator().manual_seed(1))
        # One call: most of these layers compute their whole change again in each call.
        x_TI = torch.cat([torch.zeros(1, inputs), torch.eye(inputs), probe_TI])
        answer_TO = self._answer(name, weight_OI, base_O, x_TI)
        offset_O, units_IO, probed_TO = torch.split(answer_TO, [1, inputs, len(probe_TI)])
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

    def turn(self, name: str, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor | None:
        """Return `[N, S, S]`, fp32, where the layer's output is the base's for x + M x with M of
        such blocks along its diagonal (`BoundTurn`); None where it is anything else.

        With the identity as its weight, the layer shows what it does to its input.
        """
        if not self._may_turn:
            return None
        outputs, inputs = weight_OI.shape
        base_O = torch.zeros(outputs) if bias_O is None else bias_O
        probe_TI = torch.randn(4, inputs, generator=torch.Generator().manual_seed(1))
        probe_TI[0] = 0
        one_II = torch.eye(inputs)
        try:
            turned_II = self._answer(name, one_II, torch.zeros(inputs), one_II).T
            blocks_NSS = diagonal_blocks(turned_II - one_II)
            if blocks_NSS is not None:
                wanted_TO = (probe_TI @ turned_II.T) @ weight_OI.T + base_O
                found_TO = self._answer(name, weight_OI, base_O, probe_TI)
                largest = 1 + float(wanted_TO.abs().max())
                if float((found_TO - wanted_TO).abs().max()) <= _SAME * largest:
                    return blocks_NSS
        except Exception:  # noqa: BLE001 - PEFT's layers are not made for another weight
            pass
        # A method turns the inputs of all linears or of none.
        self._may_turn = False
        return None

    def _answer(self, name: str, weight_OI: Tensor, base_O: Tensor, x_TI: Tensor) -> Tensor:
        """Return the layer's output, with this weight and bias in its base layer."""
        layer = self._model.base_model.model.get_submodule(name)
        bare = layer.get_base_layer()
        light, no_bias = bare.weight, bare.bias
        # GPT-2 stores its weights transposed.
        stored = weight_OI if isinstance(bare, nn.Linear) else weight_OI.T.contiguous()
        with torch.no_grad():
            bare.weight = nn.Parameter(stored, requires_grad=False)
            if no_bias is not None:
                bare.bias = nn.Parameter(base_O, requires_grad=False)
            try:
                answer_TO: Tensor = layer(x_TI)
            finally:
                bare.weight, bare.bias = light, no_bias
        return answer_TO


def diagonal_blocks(matrix_II: Tensor) -> Tensor | None:
    """Return the smallest diagonal blocks that contain all of a matrix, `[N, S, S]`, or None if
    they would be larger than `MAX_BLOCK`."""
    size = matrix_II.shape[0]
    rows_N, columns_N = matrix_II.nonzero(as_tuple=True)
    for block in range(1, min(size, MAX_BLOCK) + 1):
        if size % block == 0 and bool((rows_N // block == columns_N // block).all()):
            count = size // block
            blocks = matrix_II.view(count, block, count, block).diagonal(dim1=0, dim2=2)
            return blocks.permute(2, 0, 1).contiguous()
    return None


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

    def bind(self, base: EffectTarget) -> Delta | None:
        bias_O = None if base.bias is None else base.bias.detach().float().cpu()
        weight_OI = base.weight().cpu()
        blocks_NSS = self.peft_probe.turn(self.name, weight_OI, bias_O)
        if blocks_NSS is not None:
            return BoundTurn(blocks_NSS, base.module, base.dtype, base.device)
        change_OI, offset_O = self.peft_probe.measure(self.name, weight_OI, bias_O)
        # The change is the difference of two weights, with the rounding of both.
        pair = factors(change_OI, float(weight_OI.norm() + change_OI.norm()))
        parts: list[Delta] = []
        if pair is None:
            parts.append(BoundChange(base.held(change_OI)))
        elif pair[0].shape[1]:
            b_OR, a_RI = pair
            parts.append(BoundPair(a_RI, b_OR, base.dtype, base.device))
        if offset_O.any():
            parts.append(Shift(base.held(offset_O), scaled=True))
        return Together(tuple(parts)) if parts else None


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
