"""The base with an adapter to train on it, and the adapter's two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
)
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorry.errors import TrainingError
from lorry.training.training_recipe import ALL_LINEAR, TrainingMethod, TrainingRecipe


def loaded(folder: Path, recipe: TrainingRecipe) -> Any:
    """The base, quantized as the recipe says, its own weights frozen."""
    dtype = _dtype()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        trust_remote_code=False,
        use_safetensors=True,
        **_quantized(recipe, dtype),
    )
    if recipe.quantize != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if recipe.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def with_adapter(model: Any, recipe: TrainingRecipe) -> Any:
    """The PEFT model; its adapter's weights are in float32. Raises TrainingError."""
    try:
        return get_peft_model(model, _config(recipe))
    except ValueError as error:
        raise TrainingError(f"--targets {','.join(recipe.targets)}: {error}") from None


def save_adapter(model: Any, base: str, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the two files of a PEFT adapter, with nothing of this machine in them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: tensor.detach().to(dtype).contiguous()
        for key, tensor in sorted(get_peft_model_state_dict(model).items())
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config["base_model_name_or_path"] = base
    config["inference_mode"] = True
    # PEFT keeps sets here, whose order changes from one process to the next.
    for key in ("target_modules", "feedforward_modules"):
        if key in config and not isinstance(config[key], str):
            config[key] = sorted(config[key])
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _config(recipe: TrainingRecipe) -> PeftConfig:
    targets: Any = list(recipe.targets)
    if targets == [ALL_LINEAR]:
        targets = ALL_LINEAR
    match recipe.method:
        case TrainingMethod.PROMPT:
            return PromptTuningConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=recipe.virtual_tokens
            )
        case TrainingMethod.IA3:
            chosen = None if targets == ALL_LINEAR else targets
            return IA3Config(task_type="CAUSAL_LM", target_modules=chosen, feedforward_modules=None)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=targets,
        use_rslora=recipe.method is TrainingMethod.RSLORA,
        use_dora=recipe.method is TrainingMethod.DORA,
    )


def _dtype() -> torch.dtype:
    """bfloat16 where the processor or the GPU computes in it: two to three times faster."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _quantized(recipe: TrainingRecipe, dtype: torch.dtype) -> dict[str, Any]:
    match recipe.quantize:
        case "nf4":
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        case "int8":
            config = BitsAndBytesConfig(load_in_8bit=True)
        case _:
            return {}
    return {"quantization_config": config}
