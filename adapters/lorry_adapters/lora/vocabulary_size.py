"""Adapters that were trained with a vocabulary of another size than the base's.

If tokens are added to a tokenizer and the embeddings are resized (`resize_token_embeddings`), PEFT
saves a row for every token of the training. With fewer than the base has, for example without the
padding of a table, the file is complete: the tokens beyond it do not exist for the adapter, and
none of them is drawn. With more, the base can neither read nor answer the additional tokens, and
the adapter is refused with `Remedy.GROW_BASE`.
"""

from __future__ import annotations

import re
from typing import Final

from lorry_adapters.errors import Problem, Remedy
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.keys import module_of
from lorry_adapters.lora.problems import some
from lorry_adapters.lora.tensor_file import TensorFile

_PARAMETERS: Final = re.compile(
    r"(?P<module>.+?)(?:\.(?:modules_to_save|original_module|token_adapter|base_layer|default)){0,3}"
    r"\.(?P<parameter>weight|bias|lora_embedding_A|lora_B)"
    r"(?P<tail>(?:\.[^.]+){0,2})"
)
_ALONG: Final = {"lora_embedding_A": 1, "weight": 0, "bias": 0, "lora_B": 0}
"""The dimension of a parameter that counts tokens, for embeddings and heads."""


def size_of(file: TensorFile, layout: BaseLayout) -> dict[str, int]:
    """Return the number of tokens of each tensor for the base's embedding or head, by key."""
    found = {}
    tables = (layout.input_embedding, layout.output_embedding)
    for key, entry in file.entries.items():
        match = _PARAMETERS.fullmatch(key)
        if match is None:
            continue
        # Methods with virtual tokens have the model's own names below `base_model`.
        paths = (match["module"], match["module"].removeprefix("base_model."))
        module = next((m for path in paths if (m := module_of(path, layout))), None)
        along = _ALONG[match["parameter"]]
        is_table = module is not None and module.name in tables
        if is_table and len(entry.shape) > along:
            found[key] = entry.shape[along]
    return found


def vocabulary_of(layout: BaseLayout) -> int:
    """Return the size of the base's vocabulary, or 0 if its embedding is unknown."""
    table = layout.input_embedding
    return 0 if table is None else layout.modules[table].in_features


def known_of(file: TensorFile, layout: BaseLayout) -> int:
    """Return the number of tokens that an adapter knows if it is below the base's, otherwise 0."""
    smallest = min(size_of(file, layout).values(), default=0)
    return smallest if smallest < vocabulary_of(layout) else 0


def grown(file: TensorFile, layout: BaseLayout) -> Problem | None:
    """Return the problem of an adapter with more tokens than the base, or None."""
    base = vocabulary_of(layout)
    larger = {key: size for key, size in size_of(file, layout).items() if size > base}
    if not base or not larger:
        return None
    tokens = max(larger.values())
    return Problem(
        f"the adapter was trained with {tokens} tokens, but the base {layout.name} has {base}: "
        f"{tokens - base} were added to its vocabulary, which this base can neither read nor "
        f"answer ({some(larger)}). Serve the base with that vocabulary; adapters of the smaller "
        "one are served there as well",
        Remedy.GROW_BASE,
        base=layout.name,
        needed=tokens,
        limit=base,
    )
