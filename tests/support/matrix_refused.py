"""Cells of the matrix that are not served, in the words of whoever refuses.

A key is a kind, or a kind on a base. A cell that starts to be served fails its test until
its line here is gone, and so does one that stops.
"""

from __future__ import annotations

from collections.abc import Mapping

REFUSED: Mapping[str, str] = {
    "layer_replication": "layer replication is not served yet",
    "pissa": "changes the base's own weights and is not served",
    "olora": "changes the base's own weights and is not served",
    "corda": "changes the base's own weights and is not served",
    "lora-ga": "changes the base's own weights and is not served",
    # PEFT leaves GPT-2's linears as they are, and saves a file without tensors.
    "osf on gpt2": "adapter_model.safetensors contains no tensors",
    "lily": "it weights its matrices by the mean over all tokens of a batch",
    "poly": "it mixes its matrices by the task of a request, and requests have none",
    "adaption_prompt": "it changes how layers attend, which no change of a module can do",
    "shadow": "it runs a second model beside the base",
    "multitask prompt tuning": "the prompts of 2 tasks in one adapter are not",
}
"""What the server says when it is uploaded."""

_LINEAR_ONLY = (
    "kasa",
    "bdlora",
    "loha",
    "lokr",
    "lokr, both decomposed",
    "boft",
    "oft",
    "hra",
    "miss",
    "road",
    "shira",
    "c3a",
    "delora",
    "glora",
    "lily",
    "psoft",
    "peanut",
    "supertuning",
    "beft",
    "poly",
)
_NO_ADAPTION_PROMPT = (
    "qwen2",
    "qwen3",
    "phi",
    "phi3",
    "gpt_neox",
    "gptj",
    "falcon",
    "bloom",
    "opt",
    "gemma",
    "gemma2",
    "gemma3",
    "granite",
    "stablelm",
    "smollm3",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
)
_NO_REPLICATION = {
    "Could not locate the layers": ("gpt2", "gpt_neox", "gptj", "falcon", "bloom", "opt"),
    # A config has a kind for every layer, and PEFT adds none.
    "list index out of range": ("qwen2", "qwen3", "gemma2", "gemma3", "smollm3", "qwen2_moe"),
}
_ONE_KEY_HEAD = ("prefix tuning", "prefix tuning, projected", "cartridge")

IMPOSSIBLE: Mapping[str, str] = {
    **{f"{kind} on gpt2": "Conv1D" for kind in _LINEAR_ONLY},
    "olora on gpt2": "shapes cannot be multiplied",
    "olora, converted on gpt2": "size mismatch",
    **{f"adaption_prompt on {base}": "Unsupported model type" for base in _NO_ADAPTION_PROMPT},
    **{
        f"layer_replication on {base}": words
        for words, bases in _NO_REPLICATION.items()
        for base in bases
    },
    **{f"{kind} on falcon": "Sizes of tensors must match" for kind in _ONE_KEY_HEAD},
    "lora-ga on falcon": "BackwardHookFunction",
    "lora-ga, converted on falcon": "BackwardHookFunction",
    "glora on falcon": "not a plain torch.nn.Linear",
    # On a tied base it is wrapped twice.
    "trainable_tokens, head too on llama_tied": "TrainableTokensLayer wraps an unknown layer type",
    "trainable_tokens, head too on gpt2": "TrainableTokensLayer wraps an unknown layer type",
}
"""What PEFT says when it should build or run it."""
