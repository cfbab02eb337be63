"""Parses `adapter_config.json` by the method that it names."""

from __future__ import annotations

from lorry_adapters.errors import Problem, Remedy
from lorry_adapters.lora.config_fields import MAX_CONFIG, Fields
from lorry_adapters.lora.methods.method_table import METHODS, REFUSED_METHODS, method_of
from lorry_adapters.lora.parts import AdapterSpec
from lorry_adapters.lora.problems import refusal, shown

__all__ = ["MAX_CONFIG", "parse_config", "read_config"]


def parse_config(data: bytes) -> AdapterSpec:
    """Parse a config. Raises InvalidAdapter with every problem found, and nothing else."""
    spec, problems = read_config(data)
    if problems:
        raise refusal(problems)
    assert spec is not None
    return spec


def read_config(data: bytes) -> tuple[AdapterSpec | None, list[str]]:
    """Return the spec, as far as it can be read, and all problems.

    The spec is None if the method is unknown.

    Raises InvalidAdapter if `data` is not a JSON object.
    """
    fields = Fields(data)
    peft_type = fields.raw("peft_type")
    method = method_of(fields.values)
    if method is not None:
        return method.read(fields, method.name), fields.problems
    of_mlx = fields.raw("fine_tune_type")
    refused = REFUSED_METHODS.get(peft_type) if isinstance(peft_type, str) else None
    if refused is not None:
        fields.problems.append(
            Problem.within(
                f"adapters of peft_type {shown(peft_type)} are not served: {refused.reason}",
                refused.reason,
            )
        )
    elif peft_type is None and of_mlx is not None:
        fields.problems.append(
            Problem(
                f"the config is MLX-LM's (fine_tune_type {shown(of_mlx)}), which names and orients "
                "matrices differently from PEFT: convert the folder as MLX-LM wrote it, with "
                "adapters.safetensors",
                Remedy.CONVERT,
            )
        )
    elif peft_type is None:
        fields.problems.append("peft_type is missing: is this a PEFT adapter's config?")
    else:
        named = (method.name for method in METHODS.values() if method.recognizes is None)
        fields.problems.append(
            f"adapters of peft_type {shown(peft_type)} are not served; {', '.join(named)} are"
        )
    # Check the fields that all methods share even if the method is unknown.
    fields.task_type()
    return None, fields.problems
