"""Extends a base with room for a tokenizer with more tokens.

For adapters that were trained after tokens had been added. They bring their own rows, and the base
needs room for those. The new rows of the base are the mean of all others, which hardly any answer
picks; an adapter with its own tables never uses them. Adapters of the old vocabulary fit the new
base too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorry_adapters.errors import Problem, Remedy, ToolError
from lorry_adapters.lora.peft_folder import making
from lorry_adapters.lora.problems import some


@dataclass(frozen=True, slots=True)
class Extended:
    tokens: int
    """Rows of the new tables."""
    added: int
    bytes: int


def extend(base: Path, tokenizer: Path, tokens: int, out: Path) -> Extended:
    """Write a copy of `base` with at least `tokens` tokens and a folder's tokenizer to `out`.

    Raises ToolError if there is nothing to add, the tokenizer is not the base's with more tokens,
    the base is quantized, or the folder exists.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ToolError(
            Problem(
                f"the tokenizer in {tokenizer} cannot be read ({error}); name the folder of the "
                "one that the adapter was trained with",
                Remedy.GIVE,
                argument="tokenizer",
            )
        ) from error
    with making(out) as partial:
        try:
            ours = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(
                base, dtype="auto", trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ToolError(f"the base in {base} cannot be loaded: {error}") from error
        if getattr(model, "hf_quantizer", None) is not None:
            raise ToolError(f"the base in {base} is stored quantized: extend the original one")
        known, given = ours.get_vocab(), theirs.get_vocab()
        moved = [token for token, number in known.items() if given.get(token) != number]
        if moved:
            raise ToolError(
                f"the tokenizer in {tokenizer} is not the base's with more tokens: it lacks, or "
                f"numbers otherwise, {some(moved)}"
            )
        before = model.get_input_embeddings().weight.shape[0]
        tokens = max(tokens, 1 + max(given.values()))
        if tokens <= before:
            raise ToolError(f"the base has {before} tokens already, and {tokens} are asked for")
        _resize(model, before, tokens)
        model.save_pretrained(partial)
        if theirs.chat_template is None:
            theirs.chat_template = ours.chat_template
        theirs.save_pretrained(partial)
        size = sum(file.stat().st_size for file in partial.glob("*.safetensors"))
    return Extended(tokens, tokens - before, size)


@torch.no_grad()
def _resize(model: Any, before: int, tokens: int) -> None:
    model.resize_token_embeddings(tokens, mean_resizing=False)
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        for parameter in () if module is None else module.parameters(recurse=False):
            parameter[before:] = parameter[:before].float().mean(0).to(parameter.dtype)
