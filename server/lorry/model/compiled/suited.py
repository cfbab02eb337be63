"""Which models run on the compiled step, and as what."""

from __future__ import annotations

from lorry.model.base_loader import LoadedModel
from lorry.model.compiled.compiled_linear import CompiledLinear
from lorry.model.compiled.compiled_stack import CompiledStack
from lorry.model.compiled.description import ModelDescription
from lorry.model.compiled.model_structs import bare
from lorry.model.compiled.survey_model import describe
from lorry.model.compiled.witness import Unknown
from lorry.model.expert_stacks import ExpertStack
from lorry.model.kv_cache import Shapes
from lorry.model.length_limits import limits_of


def suited(loaded: LoadedModel, shapes: Shapes, longest: int) -> ModelDescription:
    """What the compiled step is to run. `shapes`: what the layers store; `longest`: tokens of a
    sequence at most.

    Raises:
        Unknown: it cannot; the message says why.
    """
    if loaded.quantization == "none" or loaded.device.type != "cpu":
        raise Unknown("it runs quantized weights on a CPU")
    if any(isinstance(layer, int) for layer in shapes) and limits_of(loaded):
        # Which layers have one is not seen from outside.
        raise Unknown("rows are padded, and a layer may not see the whole past")
    if any(shape.sight.chunk is not None for shape in shapes.values()):
        raise Unknown("a layer sees the current chunk alone")
    described = describe(loaded, shapes, longest)
    paths = [p for layer in described.layers for phase in layer.phases for p in phase]
    linears = [bare(loaded.model.get_submodule(path)) for path in (described.head, *paths)]
    if not all(isinstance(linear, CompiledLinear) for linear in linears):
        raise Unknown("some of its linears are in a form that it does not read")
    for layer in described.layers:
        if layer.mixture is not None:
            experts = bare(loaded.model.get_submodule(layer.mixture.experts))
            stacks = [stack for stack in experts.children() if isinstance(stack, ExpertStack)]
            if not all(isinstance(stack, CompiledStack) for stack in stacks):
                raise Unknown("some of its experts are in a form that it does not read")
    return described
