"""Adapters in the shapes in which trainers, old versions and people leave them: a table.

Each case takes a plain LoRA as PEFT saves it and makes it what is found in the wild. `says` is
what a refusal must tell; without it the case must be served, and answer as the plain form does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from support.bad_uploads import tar_of
from support.left_folder import (
    PREFIX,
    Left,
    another,
    as_file,
    beside,
    both,
    config,
    copies,
    doubled,
    encoded,
    ends,
    every,
    gzipped,
    inside,
    keys,
    named,
    only,
    packed,
    tensor,
    without,
)


@dataclass(frozen=True)
class Case:
    change: Callable[[Left], object]
    says: str | None = None
    kind: str = "lora"
    """What it is made from."""


_TRAINER = (
    "optimizer.pt", "rng_state.pth", "scheduler.pt", "scaler.pt", "trainer_state.json",
    "training_args.bin", "README.md", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
_LINEARS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
_PARTS = "self_attn|attention|attn|mlp|feed_forward|ffn|dense|mixer"
UNSLOTH_REGEX = (
    rf"(?:.*?(?:language|text).*?(?:{_PARTS}).*?(?:{_LINEARS}))"
    rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{_PARTS})\.(?:(?:{_LINEARS})))"
)
"""What Unsloth makes of a choice of attention and MLP, of language layers."""

OLD = {"merge_weights": False, "enable_lora": None}

TRAINERS: Mapping[str, Case] = {
    "unsloth": Case(
        config(
            auto_mapping={
                "base_model_class": "LlamaForCausalLM",
                "parent_library": "transformers.models.llama.modeling_llama",
                "unsloth_fixed": True,
            },
            task_type=None,
            target_modules=UNSLOTH_REGEX,
            lora_dropout=0,
        )
    ),
    "unsloth, expressions of before": Case(
        config(target_modules=rf".*?(?:{_PARTS}).*?(?:{_LINEARS}).*?")
    ),
    "ms-swift": Case(
        both(
            config(ensure_weight_tying=True, modules_to_save=[], target_parameters=None),
            beside("additional_config.json", "args.json", folder="v0/checkpoint-100"),
        )
    ),
    "ms-swift, its own fields": Case(
        config(lora_dtype="bfloat16", lorap_lr_ratio=16.0, lorap_emb_lr=1e-6)
    ),
    "llama-factory, with its start": Case(
        both(
            beside(*_TRAINER, "all_results.json", "trainer_log.jsonl"),
            another("pissa_init", "checkpoint-500"),
        )
    ),
    "trl, a checkpoint": Case(beside(*_TRAINER, folder="outputs/checkpoint-1200")),
    "a trainer's whole output": Case(
        both(beside(*_TRAINER, folder="out"), another("out/checkpoint-50", "out/checkpoint-99"))
    ),
    "axolotl, copies of the tables": Case(
        both(
            copies("model.embed_tokens.weight", "lm_head.weight"),
            beside("README.md", "config.json", "tokenizer.json"),
        )
    ),
    "torchtune": Case(
        both(
            only("target_modules", "r", "lora_alpha", peft_type="LORA"),
            beside("adapter_model.pt", "recipe_state.pt", folder="epoch_0"),
        )
    ),
    "torch.compile": Case(inside("_orig_mod.", after=PREFIX)),
    "torch.compile, outside": Case(lambda left: left.rename(lambda key: f"_orig_mod.{key}")),
    "data parallel": Case(lambda left: left.rename(lambda key: f"module.{key}")),
    "data parallel, inside": Case(inside("module.", after=PREFIX)),
    "FSDP": Case(
        both(
            inside("_fsdp_wrapped_module.", after=PREFIX),
            lambda left: left.rename(
                lambda key: key.replace(".self_attn.", "._fsdp_wrapped_module.self_attn.")
            ),
        )
    ),
    "activation checkpointing": Case(
        lambda left: left.rename(
            lambda key: key.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")
        )
    ),
    "DeepSpeed ZeRO-3, not gathered": Case(
        every(lambda t: t.new_empty(0), "lora_"),
        "is [0], so it contains no number (14 modules): the parts of DeepSpeed ZeRO-3 or FSDP were "
        "not gathered when it was saved",
    ),
    "FSDP, flat parameters": Case(
        lambda left: left.tensors.update({f"{PREFIX}model.layers.0._flat_param": torch.ones(9)}),
        "model.layers.0._flat_param': weights of the base itself are not served",
    ),
    "the whole model in the file": Case(
        lambda left: left.tensors.update(
            {
                PREFIX + name.replace(".weight", ".base_layer.weight"): value.clone()
                for name, value in left.base.items()
                if "_proj" in name
            }
        ),
        "self_attn.q_proj.base_layer.weight': weights of the base itself are not served",
    ),
    "MLX-LM": Case(
        both(
            lambda left: left.config.clear(),
            as_file("adapters.safetensors", fine_tune_type="lora", num_layers=2),
        ),
        "adapters.safetensors; lorry adapters convert FOLDER --out DIR writes it as PEFT does",
    ),
    "MLX-LM, renamed": Case(
        both(
            only(fine_tune_type="lora", num_layers=2, lora_parameters={"rank": 8, "scale": 20.0}),
            keys("{module}.lora_{half}"),
        ),
        "the config is MLX-LM's (fine_tune_type 'lora')",
    ),
    "llama.cpp": Case(
        as_file("tiny-lora.gguf"), "'tiny-lora.gguf' is llama.cpp's: upload the PEFT"
    ),
    "llama.cpp, of before": Case(as_file("ggml-adapter-model.bin"), "is llama.cpp's: upload"),
    "LitGPT": Case(as_file("lit_model.pth.lora"), "is LitGPT's: merge it (litgpt merge_lora)"),
    "diffusers": Case(
        as_file("pytorch_lora_weights.safetensors"), "is diffusers', of an image model"
    ),
    "a merged model": Case(
        as_file("model.safetensors"), "is a whole model's, which is served as a base"
    ),
    "DPO, with its reference": Case(another("reference"), "pack one adapter per archive"),
    "checkpoints alone": Case(
        both(lambda left: setattr(left, "folder", "out/checkpoint-1"), another("out/checkpoint-2")),
        "pack one adapter per archive",
    ),
    "pickled": Case(
        as_file("adapter_model.bin"), "is a pickle, which can run code when it is opened"
    ),
    "pickled as well": Case(beside("adapter_model.bin")),
    "no weights": Case(
        as_file(None), "adapter_model.safetensors is missing from the archive; the archive has"
    ),
    "PiSSA": Case(
        config(init_lora_weights="pissa_niter_16"), "lorry adapters convert FOLDER --initial DIR"
    ),
    "LoftQ": Case(config(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}), "LoftQ"),
}
"""What those who train leave behind."""

CONFIGS: Mapping[str, Case] = {
    "nothing but what is needed": Case(only("peft_type", "r", "lora_alpha", "target_modules")),
    "no rank: the default": Case(without("r")),
    "no bias": Case(without("bias")),
    "alpha as a float": Case(lambda left: left.config.update(lora_alpha=16.0)),
    "rank by pattern": Case(
        lambda left: left.config.update(r=64, rank_pattern={".*_proj": 8}, alpha_pattern={})
    ),
    "all-linear": Case(config(target_modules="all-linear")),
    "expression of everything": Case(config(target_modules=r".*\.(?:self_attn|mlp)\..*_proj")),
    "names with and without their parents": Case(
        config(
            target_modules=[
                "self_attn.q_proj",
                "k_proj",
                "v_proj",
                "self_attn.o_proj",
                "mlp.up_proj",
                "gate_proj",
                "down_proj",
            ]
        )
    ),
    "fan_in_fan_out on a linear": Case(config(fan_in_fan_out=True)),
    "a byte order mark of Windows": Case(encoded("utf-8-sig")),
    "UTF-16 of Windows": Case(encoded("utf-16"), "adapter_config.json is UTF-16 text"),
    "empty lists": Case(config(modules_to_save=[], exclude_modules=[], layers_to_transform=[])),
    "not in inference mode": Case(config(inference_mode=False)),
    "old switches": Case(config(merge_weights=True, enable_lora=None)),
    "unknown, and nothing": Case(config(next_years=None, another=False, more={}, rest=[])),
    "of a development version": Case(config(peft_version="0.18.1.dev0@abcdef0")),
    "no name of the base": Case(config(base_model_name_or_path=None, revision="main")),
    "a file of the base that is gone": Case(config(base_model_name_or_path="../outputs/base")),
    "defaults of what is not used": Case(
        config(
            loftq_config={},
            megatron_core="megatron.core",
            qalora_group_size=16,
            runtime_config={"ephemeral_gpu_offload": True},
            eva_config=None,
        )
    ),
    "saved modules that the base has not": Case(config(modules_to_save=["score", "v_head"])),
    "merged linears of PEFT 0.2": Case(
        config(enable_lora=[True, False, True]), "unknown key 'enable_lora' with the value [True"
    ),
    "no targets": Case(config(target_modules=None), "target_modules names no module: list those"),
    "targets of another model": Case(
        config(target_modules=["query_key_value"]),
        "the config matches no module of the base llama: target_modules is ['query_key_value']",
    ),
    "of two languages": Case(
        config(task_type="SEQ_2_SEQ_LM"), "adapters of task_type 'SEQ_2_SEQ_LM' are not served"
    ),
    "of questions": Case(config(task_type="QUESTION_ANS"), "task_type 'QUESTION_ANS' are not"),
    "no type": Case(config(peft_type=None), "peft_type is missing: is this a PEFT adapter's"),
    "a module saved, and not there": Case(
        config(modules_to_save=["lm_head"]), "modules_to_save names 'lm_head', but the file has no"
    ),
    "unknown, and something": Case(
        config(use_next_years_thing=True), "unknown key 'use_next_years_thing' with the value True"
    ),
    "experts": Case(config(target_parameters=["experts.gate_up_proj"]), "target_parameters"),
    "more layers than the base": Case(config(layer_replication=[[0, 2], [1, 2]]), "layer repl"),
}
"""What stands in `adapter_config.json`."""

FILES: Mapping[str, Case] = {
    "an adapter's name in the keys": Case(keys(PREFIX + "{module}.lora_{half}.default.weight")),
    "another adapter's name": Case(keys(PREFIX + "{module}.lora_{half}.sft-run_2.weight")),
    "no prefix": Case(keys("{module}.lora_{half}.weight")),
    "the prefix twice": Case(keys(PREFIX * 2 + "{module}.lora_{half}.weight")),
    "no metadata": Case(lambda left: setattr(left, "metadata", False)),
    "float64": Case(lambda left: left.cast(torch.float64)),
    "float16": Case(lambda left: left.cast(torch.float16)),
    "bfloat16": Case(lambda left: left.cast(torch.bfloat16)),
    "float8 e4m3": Case(lambda left: left.cast(torch.float8_e4m3fn)),
    "float8 e5m2": Case(lambda left: left.cast(torch.float8_e5m2)),
    "types mixed": Case(every(lambda t: t.to(torch.bfloat16), "lora_A")),
    "a tar.gz, nested": Case(packed(gzipped, "me/runs/7/final_adapter")),
    "a tar": Case(packed(tar_of, "adapter")),
    "integers": Case(lambda left: left.cast(torch.int8), "is I8; adapters are served in F32, F16"),
    "never trained": Case(
        every(torch.zeros_like, "lora_B"),
        "the adapter changes nothing: every lora_B is zero, as before training",
    ),
    "diverged": Case(
        tensor(lambda t: t.fill_(float("nan")), "lora_B"), "contains NaN or infinite numbers"
    ),
    "overflowed": Case(
        tensor(lambda t: t.fill_(float("inf")), "lora_A"), "contains NaN or infinite numbers"
    ),
    "half of a pair": Case(
        lambda left: left.tensors.pop(left.any_key("lora_B")), "has lora_A and no lora_B"
    ),
    "two adapters": Case(
        lambda left: left.tensors.update(
            {
                key.replace(".weight", ".second.weight"): value.clone()
                for key, value in left.tensors.items()
            }
        ),
        "the keys name more than one adapter",
    ),
    "a vision tower's": Case(
        lambda left: left.tensors.update(
            {
                key.replace("model.layers", "vision_tower.layers"): value.clone()
                for key, value in left.tensors.items()
            }
        ),
        "the file has 14 modules that the base llama does not have: vision_tower.layers.0",
    ),
    "of a larger model": Case(
        every(lambda t: torch.cat([t, t], 1), "lora_A"), "this base needs [rank, 64]"
    ),
}
"""How the tensors are stored, and where."""

_HEAD = "lm_head.weight"
_TABLE = "embed_tokens.weight"
_SAVED = "modules_to_save=both"

STATES: Mapping[str, Case] = {
    "dora, a parameter of its own": Case(
        ends("lora_magnitude_vector", "lora_magnitude_vector.weight"), kind="dora"
    ),
    "dora, with a name": Case(named, kind="dora"),
    "dora, with a name in a module": Case(
        both(ends("lora_magnitude_vector", "lora_magnitude_vector.weight"), named), kind="dora"
    ),
    "dora, its magnitudes lost": Case(
        lambda left: left.tensors.pop(left.any_key("magnitude")),
        "the config sets use_dora, but the file lacks it for model.layers.0",
        kind="dora",
    ),
    "a pair's bias, with a name": Case(named, kind="lora_bias"),
    "embeddings, with a name": Case(named, kind="embeddings target"),
    "rows, with a name": Case(named, kind="trainable_token_indices"),
    "ia3, with a name": Case(named, kind="ia3"),
    "adalora, with a name": Case(named, kind="adalora"),
    "saved modules, a raw state": Case(
        both(
            ends(_HEAD, "lm_head.modules_to_save.default.weight"),
            ends(_TABLE, "embed_tokens.modules_to_save.default.weight"),
        ),
        kind=_SAVED,
    ),
    "saved modules, all that lies there": Case(
        both(
            doubled(_HEAD, "lm_head.modules_to_save.weight"),
            doubled(_TABLE, "embed_tokens.modules_to_save.weight"),
            doubled(_HEAD, "lm_head.original_module.weight", change=torch.zeros_like),
        ),
        kind=_SAVED,
    ),
    "saved modules, compiled": Case(inside("_orig_mod.", after=PREFIX), kind=_SAVED),
    "saved modules, data parallel": Case(
        lambda left: left.rename(lambda key: f"module.{key}"), kind=_SAVED
    ),
    "saved modules, two that differ": Case(
        doubled(_HEAD, "lm_head.modules_to_save.weight", change=torch.zeros_like),
        "are one trained tensor, but the file contains two that differ",
        kind=_SAVED,
    ),
    "saved modules, one lost": Case(
        lambda left: left.tensors.pop(left.any_key("lm_head")),
        "modules_to_save names 'lm_head', but the file has no such module",
        kind=_SAVED,
    ),
    "saved modules, not asked for": Case(
        config(modules_to_save=None),
        "input_layernorm.weight': weights of the base itself are not served",
        kind="modules_to_save=norm",
    ),
    "tables not asked for, and trained": Case(config(modules_to_save=None), kind=_SAVED),
    "rows of tokens that are not": Case(
        config(trainable_token_indices={"embed_tokens": [1, 2, 3, 4, 5, 6, 49152]}),
        "trainable_token_indices: the base has 384 tokens, not 49152",
        kind="trainable_token_indices",
    ),
    "bone, before it was miss": Case(
        both(
            config(peft_type="BONE"),
            lambda left: left.rename(lambda key: key.replace(".miss_", ".bone_")),
        ),
        "adapters of peft_type 'BONE' are not served: it is MiSS under its name before PEFT "
        "0.19; lorry adapters convert FOLDER --out DIR writes it as PEFT does",
        kind="miss",
    ),
}
"""Other kinds, as raw state dicts and old versions spell their parts."""

CASES: Mapping[str, Case] = {**TRAINERS, **CONFIGS, **FILES, **STATES}
