"""`adapter_config.json` -> what the adapter asks for, by the method that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from lorry_adapters.lora.fields import MAX_CONFIG, Fields
from lorry_adapters.lora.methods.adalora import read_adalora
from lorry_adapters.lora.methods.biases import read_beft
from lorry_adapters.lora.methods.bottleneck import is_adapterhub, read_bottleneck
from lorry_adapters.lora.methods.frod import read_frod
from lorry_adapters.lora.methods.ia3 import read_ia3
from lorry_adapters.lora.methods.lora import read_lora
from lorry_adapters.lora.methods.measured import MEASURED, read_measured
from lorry_adapters.lora.methods.norms import read_norms
from lorry_adapters.lora.methods.prefix import read_prefix
from lorry_adapters.lora.methods.products import read_loha, read_lokr
from lorry_adapters.lora.methods.prompt import read_multitask, read_prompt
from lorry_adapters.lora.methods.sparse import read_shira, read_supertuning
from lorry_adapters.lora.methods.spectral import read_osf, read_psoft
from lorry_adapters.lora.methods.tokens import read_tokens
from lorry_adapters.lora.methods.vera import read_vera
from lorry_adapters.lora.parts import AdapterSpec
from lorry_adapters.lora.problems import refusal, shown

__all__ = ["MAX_CONFIG", "METHODS", "parse_config", "read_config"]

METHODS: Final[Mapping[str, Callable[[Fields], AdapterSpec | None]]] = {
    "LORA": read_lora,
    "ADALORA": read_adalora,
    "IA3": read_ia3,
    "BEFT": read_beft,
    "FROD": read_frod,
    "LN_TUNING": read_norms,
    "LOHA": read_loha,
    "LOKR": read_lokr,
    "OSF": read_osf,
    "PSOFT": read_psoft,
    "SHIRA": read_shira,
    "SUPERTUNING": read_supertuning,
    "TRAINABLE_TOKENS": read_tokens,
    "VERA": read_vera,
    **{peft_type: read_measured(peft_type) for peft_type in MEASURED},
    "PROMPT_TUNING": read_prompt("PROMPT_TUNING"),
    "P_TUNING": read_prompt("P_TUNING"),
    "CPT": read_prompt("CPT"),
    "MULTITASK_PROMPT_TUNING": read_multitask,
    "PREFIX_TUNING": read_prefix("PREFIX_TUNING"),
    "CARTRIDGE": read_prefix("CARTRIDGE"),
}
"""By `peft_type`. Each takes its fields and refuses the rest by name."""

NO_DELTA: Final[Mapping[str, str]] = {
    "ADAMSS": "where its numbers belong is not in its file, but in a clustering of the base's "
    "weights that other versions of its library make otherwise; train a LoRA or an OSF adapter",
    "ADAPTION_PROMPT": "it changes how layers attend, which no change of a module does; train "
    "prefix tuning (PREFIX_TUNING), which reaches the same place",
    "BONE": "it is MiSS under its name of before PEFT 0.19; lorry adapters convert makes it one",
    "LILY": "it weighs its matrices by the mean over all tokens of a batch, so that a token's "
    "answer would depend on those after it and on other requests; train a LoRA",
    "POLY": "it mixes its matrices by the task of a request, and requests have none; make a LoRA "
    "of each task with lorry adapters convert --task N",
    "SHADOW": "it runs a second model beside the base; train a LoRA",
    "XLORA": "it routes between other adapters, which are not in its file; upload those, and name "
    "several with their scales in a request",
}
"""PEFT's methods that are no delta of a module's own answer: why, and what to do."""


def parse_config(data: bytes) -> AdapterSpec:
    """Raises InvalidAdapter with every problem found, and nothing else."""
    spec, problems = read_config(data)
    if problems:
        raise refusal(problems)
    assert spec is not None
    return spec


def read_config(data: bytes) -> tuple[AdapterSpec | None, list[str]]:
    """What can be told of a config, and its problems; None where not even the method can.

    Raises InvalidAdapter where `data` is no JSON object.
    """
    fields = Fields(data)
    peft_type = fields.raw("peft_type")
    if isinstance(peft_type, str) and peft_type in METHODS:
        return METHODS[peft_type](fields), fields.problems
    if peft_type is None and is_adapterhub(fields):
        return read_bottleneck(fields), fields.problems
    of_mlx = fields.raw("fine_tune_type")
    reason = NO_DELTA.get(peft_type) if isinstance(peft_type, str) else None
    if reason is not None:
        fields.problems.append(f"adapters of peft_type {shown(peft_type)} are not served: {reason}")
    elif peft_type is None and of_mlx is not None:
        fields.problems.append(
            f"the config is MLX-LM's (fine_tune_type {shown(of_mlx)}), which names its matrices "
            "otherwise than PEFT and keeps them turned: lorry adapters convert, given the folder "
            "as MLX-LM left it, with adapters.safetensors, makes it PEFT's"
        )
    elif peft_type is None:
        fields.problems.append("peft_type is missing: is this a PEFT adapter's config?")
    else:
        fields.problems.append(
            f"adapters of peft_type {shown(peft_type)} are not served; "
            f"{', '.join(METHODS)} {'is' if len(METHODS) == 1 else 'are'}"
        )
    # Whatever it is, what can be said of the fields that all methods share is said.
    fields.task_type()
    return None, fields.problems
