"""The loaded model as adapters see it: a `BaseLayout` of plain data."""

from __future__ import annotations

from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind


def layout_of(model: PreTrainedModel, name: str) -> BaseLayout:
    """`name` is what the base is called in the API. Call it before any module is wrapped."""
    modules = {}
    for path, module in model.named_modules():
        entry = _entry(path, module)
        if entry is not None:
            modules[path] = entry
    head = model.get_output_embeddings()
    return BaseLayout(
        name=name,
        architecture=type(model).__name__,
        num_layers=int(model.config.get_text_config().num_hidden_layers),
        output_embedding=next(
            (path for path, module in model.named_modules() if head is not None and module is head),
            None,
        ),
        modules=modules,
    )


def _entry(path: str, module: nn.Module) -> BaseModule | None:
    if isinstance(module, Linear4bit | Linear8bitLt):
        # bitsandbytes replaces a Conv1D by a linear with the transposed weight, and
        # transformers notes what was there: an adapter still says `fan_in_fan_out`.
        transposed = issubclass(module.source_cls, Conv1D)
        kind = ModuleKind.CONV1D if transposed else ModuleKind.LINEAR
        return BaseModule(path, kind, module.in_features, module.out_features)
    if isinstance(module, nn.Linear):
        return BaseModule(path, ModuleKind.LINEAR, module.in_features, module.out_features)
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return BaseModule(path, ModuleKind.CONV1D, int(inputs), int(outputs))
    if isinstance(module, nn.Embedding):
        return BaseModule(path, ModuleKind.EMBEDDING, module.num_embeddings, module.embedding_dim)
    own = dict(module.named_parameters(recurse=False))
    if not own:
        return None
    width = max(int(parameter.shape[-1]) if parameter.ndim else 1 for parameter in own.values())
    return BaseModule(path, ModuleKind.OTHER, width, width)
