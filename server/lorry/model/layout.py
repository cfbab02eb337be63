"""The loaded model as adapters see it: a `BaseLayout` of plain data."""

from __future__ import annotations

from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorry.model.expert_layouts import parameters_of
from lorry.model.quantized_linear import QuantizedLinear, was_transposed
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind


def layout_of(model: PreTrainedModel, name: str) -> BaseLayout:
    """`name` is what the base is called in the API. Call it before any module is wrapped."""
    modules = {}
    for path, module in model.named_modules():
        entry = _entry(path, module)
        if entry is not None:
            modules[path] = entry
    text = model.config.get_text_config()
    table = _path_of(model, model.get_input_embeddings())
    kv_heads, head_size = _kv_of(text)
    return BaseLayout(
        name=name,
        architecture=type(model).__name__,
        num_layers=int(getattr(text, "num_hidden_layers", 0)),
        output_embedding=_path_of(model, model.get_output_embeddings()),
        modules=modules,
        input_embedding=table,
        tied=bool(getattr(text, "tie_word_embeddings", False)),
        caps_logits=bool(getattr(text, "final_logit_softcapping", None)),
        kv_heads=kv_heads,
        head_size=head_size,
        text="" if table is None or text is model.config else table.rpartition(".")[0],
        body=model.base_model_prefix,
        parameters=parameters_of(model),
    )


def _kv_of(config: PretrainedConfig) -> tuple[int, int]:
    """(heads, size) of the keys and values that every layer keeps, as PEFT reads them from a
    config (`_prepare_prompt_learning_config`); zeros where there is no one shape."""
    if getattr(config, "is_heterogeneous", False) or getattr(config, "num_kv_shared_layers", 0):
        return 0, 0
    # Falcon's one head for all queries, of which PEFT does not know.
    multi_query = getattr(config, "multi_query", False)
    if multi_query and not getattr(config, "new_decoder_architecture", False):
        return 0, 0
    queries = getattr(config, "num_attention_heads", None)
    if not queries:
        # A recurrent model; it is refused later, with its reason.
        return 0, 0
    heads = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    return int(heads), int(size)


def _path_of(model: PreTrainedModel, wanted: nn.Module | None) -> str | None:
    if wanted is None:
        return None
    return next((path for path, module in model.named_modules() if module is wanted), None)


def _entry(path: str, module: nn.Module) -> BaseModule | None:
    biased = isinstance(getattr(module, "bias", None), Tensor)
    if isinstance(module, Linear4bit | Linear8bitLt):
        kind = ModuleKind.CONV1D if was_transposed(module) else ModuleKind.LINEAR
        return BaseModule(path, kind, module.in_features, module.out_features, biased)
    if isinstance(module, nn.Linear | QuantizedLinear):
        transposed = isinstance(module, QuantizedLinear) and module.transposed
        kind = ModuleKind.CONV1D if transposed else ModuleKind.LINEAR
        return BaseModule(path, kind, module.in_features, module.out_features, biased)
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return BaseModule(path, ModuleKind.CONV1D, int(inputs), int(outputs), biased)
    if isinstance(module, nn.Embedding):
        return BaseModule(path, ModuleKind.EMBEDDING, module.num_embeddings, module.embedding_dim)
    own = dict(module.named_parameters(recurse=False))
    if not own:
        return None
    width = max(int(parameter.shape[-1]) if parameter.ndim else 1 for parameter in own.values())
    return BaseModule(path, ModuleKind.OTHER, width, width, biased)
