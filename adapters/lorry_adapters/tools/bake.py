"""Bakes an adapter into the weights of a base with PEFT's `merge_and_unload`.

For servers that know no adapters. The result is a folder that
`AutoModelForCausalLM.from_pretrained` loads. It can also be served as a base, with new adapters.
The base is loaded unquantized: a delta added to rounded weights would be rounded with them.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from lorry_adapters.errors import InvalidAdapter, Problem, Remedy, ToolError
from lorry_adapters.lora.methods.initialisation import changed_base
from lorry_adapters.lora.methods.method_table import REFUSED_METHODS, has_virtual_tokens
from lorry_adapters.lora.parameters import peft_writes_now
from lorry_adapters.lora.peft_folder import PeftFolder, making, read_config
from lorry_adapters.lora.peft_probe import truly_missing
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.tools.regroup import out_of_order

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_FORMER_EXPERT: Final = re.compile(r"\.experts\.\d+\.")
"""In a key: experts were linears when the adapter was trained."""

_TOKENIZER: Final = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*")
_TOKENIZER_TOO: Final = ("merges.txt", "chat_template*", "*.model")


@dataclass(frozen=True, slots=True)
class Baked:
    parameters: int
    bytes: int
    modules: int
    """Modules of the base whose weights changed."""


def bake(
    base: Path, adapter: Path, scale: float, dtype: str, out: Path, *, bars: bool = False
) -> Baked:
    """Bake `adapter` at `scale` times its trained strength into a copy of `base` in `out`.

    `bars` shows PEFT's progress on standard error.

    The sum is computed in float32 and stored as `dtype`, a name of DTYPES. Raises ToolError, and
    InvalidAdapter if PEFT cannot load the whole adapter on this base.
    """
    from transformers import AutoModelForCausalLM

    if not math.isfinite(scale) or scale == 0:
        raise ToolError(f"the scale must be a finite number other than 0, not {scale:g}")
    config = read_config(adapter)
    _refuse(config)
    with making(out) as partial:
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ToolError(f"the base in {base} cannot be loaded: {error}") from error
        if getattr(model, "hf_quantizer", None) is not None:
            raise ToolError(f"the base in {base} is stored quantized: bake into the original one")
        wrapped = _wrapped(model, adapter, config)
        changed = _scaled(wrapped, scale)
        _untie(wrapped)
        with _by_peft("merge it into"):
            merged = wrapped.merge_and_unload(progressbar=bars, safe_merge=True)
        merged = merged.to(DTYPES[dtype])
        try:
            merged.save_pretrained(partial)
        except (ValueError, RuntimeError) as error:
            raise ToolError(f"transformers cannot write the baked model: {error}") from error
        for pattern in (*_TOKENIZER, *_TOKENIZER_TOO):
            for file in base.glob(pattern):
                shutil.copy(file, partial)
        size = sum(file.stat().st_size for file in partial.glob("*.safetensors"))
        return Baked(sum(one.numel() for one in merged.parameters()), size, changed)


def _refuse(config: Mapping[str, Any]) -> None:
    """Raise InvalidAdapter if no weights of this base could do what the adapter does."""
    kind = config.get("peft_type")
    start = changed_base(config)
    if not isinstance(kind, str):
        said = "its config names no peft_type: only what PEFT saves can be baked"
    elif start is not None:
        # PEFT would subtract the initial pair from this base again before it loads the weights.
        said = Problem(
            f"{start} is relative to a changed base: convert it first", Remedy.CONVERT_START
        )
    elif kind in REFUSED_METHODS:
        reason = REFUSED_METHODS[kind].reason
        said = Problem.within(f"{kind} cannot be baked: {reason}", reason)
    elif has_virtual_tokens(kind):
        said = "it puts tokens before the prompt: no weights could hold them"
    elif config.get("alora_invocation_tokens"):
        said = "activated LoRA acts on some tokens only: no weights do that"
    elif config.get("layer_replication"):
        said = "layer replication makes layers that this base has not: it cannot be baked"
    else:
        return
    raise InvalidAdapter([said])


def _wrapped(model: Any, adapter: Path, config: Mapping[str, Any]) -> Any:
    """Load the adapter on the base, with every key of the file in its place."""
    from peft import PeftConfig, get_peft_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    unlike = _read_otherwise(adapter, config)
    if unlike is not None:
        raise InvalidAdapter([unlike])
    with _by_peft("load it on"):
        # Not `from_pretrained`, which cannot read a file with a byte order mark.
        parsed = PeftConfig.from_peft_type(**PeftConfig.check_kwargs(**config))
        if getattr(parsed, "lora_dropout", 0.0):
            # For training only; and PEFT refuses it on the stacked weights of experts.
            parsed.lora_dropout = 0.0
        wrapped = get_peft_model(model, parsed)
        result = set_peft_model_state_dict(wrapped, load_peft_weights(str(adapter), device="cpu"))
    missing = truly_missing(result.missing_keys, wrapped)
    problems = []
    if result.unexpected_keys:
        problems.append(f"this base has no place for {some(result.unexpected_keys)}")
    if missing:
        problems.append(f"the file lacks {some(missing)}")
    if problems:
        raise InvalidAdapter(problems)
    return wrapped.eval()


@contextmanager
def _by_peft(what: str) -> Iterator[None]:
    """Turn whatever PEFT raises into InvalidAdapter: the adapter is untrusted."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise InvalidAdapter([f"PEFT cannot {what} this base: {shown(said, 300)[1:-1]}"]) from error


def _read_otherwise(adapter: Path, config: Mapping[str, Any]) -> str | None:
    """Return why PEFT would load other deltas than were trained, or None."""
    if config.get("target_parameters"):
        if not peft_writes_now(config.get("peft_version")):
            return (
                "it was saved by a PEFT before 0.19.1, which had A and B of bare parameters in "
                "each other's places: the PEFT here would read it otherwise"
            )
        with PeftFolder(adapter) as folder:
            grouped = out_of_order(folder, False)
        if grouped:
            return Problem(
                "its experts' columns are in another order than PEFT's, by its config: convert it "
                "first",
                Remedy.CONVERT,
            )
        return None
    changed = [key for key in ("use_rslora", "rank_pattern", "alpha_pattern") if config.get(key)]
    with PeftFolder(adapter) as folder:
        former = [key for key in folder.entries if _FORMER_EXPERT.search(key)]
    if former and changed:
        return (
            f"it has a linear for each expert ({some(former, 1)}) and {some(changed)}: PEFT brings "
            "it to this base's stacked experts at another strength"
        )
    return None


def _untie(wrapped: Any) -> None:
    """Give each changed layer that shares its weight with another module a weight of its own.

    The output head of many models is the table of embeddings: a delta merged into one would be in
    the other too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    users: dict[int, int] = {}
    for module in wrapped.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    for module in wrapped.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layer = module.get_base_layer()
        if users.get(id(getattr(layer, "weight", None)), 0) > 1:
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
            wrapped.config.get_text_config().tie_word_embeddings = False
            wrapped.config.tie_word_embeddings = False


def _scaled(wrapped: Any, scale: float) -> int:
    """Scale every layer of the adapter by `scale`. Return how many there are."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        if isinstance(layer, LoraLayer):
            # `set_scale` would divide an AdaLoRA's strength by its rank.
            layer.scaling["default"] *= scale
        elif scale != 1:
            raise ToolError("only a LoRA adapter has a scale: bake this one as it was trained")
    return len(layers)
