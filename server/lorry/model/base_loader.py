"""Settings -> the resident base: loaded once, quantized, frozen, described.

Nothing here changes the model after it is loaded, and no code of a model's repository
is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from lorry.cache_memory import for_host_cache, for_kv_cache
from lorry.errors import ModelError, UnsupportedModel
from lorry.logs import hush_libraries
from lorry.model import base_source, first_qwen, gguf_blocks
from lorry.model.expert_loading import ExpertsConfig
from lorry.model.experts import quantize_experts, use_int8_stacks
from lorry.model.half_embedding import halve
from lorry.model.kernels import use_int8_kernels
from lorry.model.layout import layout_of
from lorry.model.length import max_model_len
from lorry.model.memory import give_back_freed, let_go_of_files, memory_by_part
from lorry.model.progress import Meter, Say, meter_of
from lorry.model.quantize import (
    Precision,
    Quantization,
    bitsandbytes_config,
    fitting,
    resolve,
    settle,
    stored_quantization,
)
from lorry.model.quick_import import without_dynamo
from lorry.model.quiet import quiet
from lorry.option import format_size
from lorry.settings import Settings
from lorry_adapters.lora import memory_limit
from lorry_adapters.lora.base import BaseLayout


class LinearReplacer(Protocol):
    """Has linears of its own for a quantized base on a CPU."""

    def config_of(
        self, found: base_source.BaseSource, precision: Precision
    ) -> QuantizationConfigMixin | None:
        """A configuration with which transformers takes linears that were kept from an earlier
        start; None where there are none."""
        ...

    def replace(self, model: PreTrainedModel) -> bool:
        """Before bitsandbytes rearranges its weights. True if all of its linears were replaced."""
        ...

    def keep(
        self, model: PreTrainedModel, found: base_source.BaseSource, precision: Precision
    ) -> None:
        """For the next start."""
        ...

    def folder(self, found: base_source.BaseSource, precision: Precision) -> Path | None:
        """The folder in which they are kept, or None."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """The base and what the rest of the server needs to know of it."""

    model: PreTrainedModel
    """In evaluation mode; no parameter asks for a gradient."""
    tokenizer: PreTrainedTokenizerFast
    config: PretrainedConfig
    name: str
    """What the API calls it."""
    other_names: tuple[str, ...]
    """What it is asked for by, too."""
    repository: str | None
    """Its id on the hub, where it has one."""
    layout: BaseLayout
    device: torch.device
    dtype: torch.dtype
    """Of activations, and of weights that are not quantized."""
    quantization: str
    """`nf4`, `fp4`, `int8` or `none`."""
    eos_token_ids: frozenset[int]
    memory: dict[str, int]
    """Bytes by part: `lorry.model.memory.PARTS`."""
    max_model_len: int
    """Tokens, prompt and answer together."""
    source: str
    """As the user gave it."""
    revision: str | None
    """Commit of a hub model."""
    kept: Path | None = None
    """Where its quantized linears are kept for the next start."""


@without_dynamo()
def load(
    settings: Settings,
    progress: Say,
    *,
    meter: Meter | None = None,
    attention: str = "eager",
    replacer: LinearReplacer | None = None,
) -> LoadedModel:
    """Fetch where needed, load, quantize and describe `settings.model`.

    `attention` names a function registered with transformers. `meter` draws bars; without
    one, `progress` gets a line now and then. `replacer` may replace the linears
    of a quantized base on a CPU. Raises ModelError, UnsupportedModel.
    """
    hush_libraries()
    precision = resolve(settings)
    found = _fetched(settings, progress, meter)
    config = config_of(found)
    stored = stored_quantization(config, settings.quantize)
    if settings.quantize == "auto" and stored is None:
        precision, why = _fitting(settings, precision, found, config)
        if why is not None:
            progress(why)
    length = max_model_len(config, found.given, settings.max_model_len, progress)
    tokenizer = _tokenizer(found, config)
    kind = precision.quantization if stored is None else stored
    weights = "unquantized" if kind is Quantization.NONE else kind.value
    progress(
        f"loading {found.name}: {weights} weights, {_short(precision.dtype)} on {precision.device}"
    )
    quantized = kind is not Quantization.NONE
    if not quantized or precision.device.type != "cpu":
        replacer = None
    # Files that are quantized themselves, or renamed on the way, are loaded each time.
    keeper = None if stored is not None or first_qwen.is_original(found.folder) else replacer
    kept = None if keeper is None else keeper.config_of(found, precision)
    bitsandbytes = (
        partial(ExpertsConfig, meter=meter or meter_of(progress))
        if precision.device.type == "cpu"
        else BitsAndBytesConfig
    )
    settled = kept or (None if stored is not None else bitsandbytes_config(precision, bitsandbytes))
    model = _model(found, config, precision, attention, settled)
    quantize_experts(model, replace(precision, quantization=kind))
    name, *others = names_of(settings, found)
    layout = replace(described(model, found, name), exact=not quantized)
    if kept is None:
        replaced = replacer is not None and replacer.replace(model)
        if replaced and keeper is not None:
            keeper.keep(model, found, precision)
        settle(model, precision)
        if kind is Quantization.INT8 and precision.device.type == "cpu" and not replaced:
            use_int8_kernels(model, threshold=precision.int8_threshold)
            use_int8_stacks(model)
    if quantized and precision.device.type == "cpu":
        halve(model, found.folder)
    if quantized:
        give_back_freed()
        let_go_of_files(model)
    memory = memory_by_part(model)
    parts = ", ".join(f"{part} {format_size(size)}" for part, size in memory.items() if size)
    progress(f"{name} takes {format_size(sum(memory.values()))}: {parts}")
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=model.config,
        name=name,
        other_names=tuple(others),
        repository=found.repository,
        layout=layout,
        device=precision.device,
        dtype=precision.dtype,
        quantization=kind.value,
        eos_token_ids=_eos_token_ids(model, tokenizer, found),
        memory=memory,
        max_model_len=length,
        source=found.given,
        revision=found.revision,
        kept=None if keeper is None else keeper.folder(found, precision),
    )


def _fitting(
    settings: Settings,
    precision: Precision,
    found: base_source.BaseSource,
    config: PretrainedConfig,
) -> tuple[Precision, str | None]:
    text = config.get_text_config()
    size = sum(path.stat().st_size for path in found.folder.glob("*.safetensors"))
    stored = getattr(config, "dtype", None) or torch.float32
    weights = gguf_blocks.weights_in(found.folder)
    free = memory_limit.free()
    return fitting(
        precision,
        # A head counts with them, which is tied to the embeddings or not.
        weights=size // stored.itemsize if weights is None else weights,
        # As in the file where it has 16 bits (`half_embedding`).
        table=int(text.vocab_size) * int(text.hidden_size) * min(stored.itemsize, 4),
        beside=for_kv_cache(settings, free) + for_host_cache(settings, free),
        free=free,
    )


def names_of(settings: Settings, found: base_source.BaseSource) -> list[str]:
    """What the base is called, the first name first. Raises ModelError for one that is empty."""
    if settings.served_model_name is None:
        return [found.name]
    names = [name.strip() for name in settings.served_model_name.split(",")]
    if not all(names):
        raise ModelError(
            f"--served-model-name {settings.served_model_name!r} has an empty name; "
            "write them with one ',' between two"
        )
    return list(dict.fromkeys(names))


def config_of(found: base_source.BaseSource) -> PretrainedConfig:
    """What the files say of the model. Raises ModelError, UnsupportedModel."""
    original = first_qwen.config_of(found.folder, found.given)
    if original is not None:
        return original
    try:
        config = AutoConfig.from_pretrained(found.folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise ModelError(f"the config of {found.given} cannot be read: {error}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(
            f"{found.given} is of type {config.model_type}, which is not a causal language model"
        )
    return config


def described(model: PreTrainedModel, found: base_source.BaseSource, name: str) -> BaseLayout:
    """The layout of `model`, which may be on torch's meta device, by its files' names."""
    layout = layout_of(model, name)
    if first_qwen.is_original(found.folder):
        return replace(layout, aliases=first_qwen.aliases(model.config))
    return layout


def tokenizer_of(settings: Settings) -> PreTrainedTokenizerFast:
    """The base's, where another process has loaded the base. Raises ModelError."""
    found = _fetched(settings, lambda line: None, None)
    return _tokenizer(found, config_of(found))


def _fetched(settings: Settings, progress: Say, meter: Meter | None) -> base_source.BaseSource:
    return base_source.fetch(
        settings.model,
        settings.home,
        revision=settings.revision,
        token=settings.hf_token,
        say=progress,
        meter=meter or meter_of(progress),
    )


def _tokenizer(found: base_source.BaseSource, config: PretrainedConfig) -> PreTrainedTokenizerFast:
    try:
        with quiet():
            # Where the class in its config is code of the repository, the file says it all.
            kind = (
                PreTrainedTokenizerFast if first_qwen.is_original(found.folder) else AutoTokenizer
            )
            tokenizer = kind.from_pretrained(found.folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise ModelError(f"the tokenizer of {found.given} cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise UnsupportedModel(
            f"{found.given} has only a slow tokenizer; save it with a tokenizer.json"
        )
    largest = max(tokenizer.get_vocab().values(), default=-1)
    rows = config.get_text_config().vocab_size
    if largest >= rows:
        raise UnsupportedModel(
            f"{found.given}: the tokenizer knows token {largest}, the model has embeddings for "
            f"{rows} only; the two do not belong together"
        )
    return tokenizer


def _model(
    found: base_source.BaseSource,
    config: PretrainedConfig,
    precision: Precision,
    attention: str,
    quantization: QuantizationConfigMixin | None,
) -> PreTrainedModel:
    try:
        with quiet():
            # Renamed and cut on the way where the files are of the first Qwen, and made of blocks
            # where they come from a GGUF file.
            original = first_qwen.is_original(found.folder)
            weights = (
                first_qwen.weights_of(found.folder)
                if original
                else gguf_blocks.weights_of(found.folder)
            )
            # Weights that are given have no folder, in which `AutoModelForCausalLM` would look.
            kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            model, report = (AutoModelForCausalLM if weights is None else kind).from_pretrained(
                found.folder if weights is None else None,
                config=config,
                state_dict=weights,
                dtype=precision.dtype,
                # One device, named: accelerate neither chooses nor installs hooks.
                device_map={"": precision.device},
                attn_implementation=attention,
                quantization_config=quantization,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                # Refused below, with the name that transformers' own refusal lacks.
                ignore_mismatched_sizes=True,
            )
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{found.given} does not fit on {precision.device} as {precision.quantization}: {error}"
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"{found.given} cannot be loaded: {error}") from error
    _refuse_gaps(found, report)
    if weights is not None and (found.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(found.folder)
    model.requires_grad_(False)
    model.eval()
    return model


def _refuse_gaps(found: base_source.BaseSource, report: Mapping[str, Collection[object]]) -> None:
    """Weights that the files lack, or have in another shape: transformers makes up numbers."""
    missing = sorted(str(key) for key in report["missing_keys"])
    # Entries are the key, or the key with both shapes.
    mismatched = sorted(
        str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]
    )
    for names, problem in ((missing, "missing from"), (mismatched, "of another shape in")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{found.given}: {names[0]}{more}: {problem} its files")


def _eos_token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: base_source.BaseSource
) -> frozenset[int]:
    found: set[int] = set()
    for value in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(int(item) for item in value)
    if first_qwen.is_original(folder.folder):
        end = tokenizer.get_vocab().get(first_qwen.chat_end(folder.folder))
        found.update(() if end is None else (end,))
    return frozenset(found)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
