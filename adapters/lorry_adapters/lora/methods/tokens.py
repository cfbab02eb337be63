"""Trainable tokens as a method of its own: rows of an embedding, in place of the base's.

<embedding>.trainable_tokens_delta      [tokens, width]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from lorry_adapters.lora import fields as check
from lorry_adapters.lora.base import BaseLayout, ModuleKind
from lorry_adapters.lora.fields import Fields
from lorry_adapters.lora.keys import PREFIX, check_shapes, sort_keys, unexpected
from lorry_adapters.lora.parts import Contents, Parts, SpecBase
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.replaced import TokenLogits, TokenRows
from lorry_adapters.lora.tensor_file import TensorFile

_KEY: Final = "trainable_tokens_delta"


@dataclass(frozen=True, slots=True)
class TokensSpec(SpecBase):
    """Made by `read_tokens` only."""

    token_ids: tuple[int, ...]

    @property
    def scalable(self) -> bool:
        return False

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> Contents:
        keys = sort_keys(file, layout, (_KEY,), problems)
        problems.extend(unexpected(keys.rest, f"{PREFIX}<embedding>.{_KEY}"))
        found = keys.of(_KEY)
        for name, key in found.items():
            module = layout.modules[name]
            if module.kind is not ModuleKind.EMBEDDING:
                problems.append(f"{shown(name)} is no embedding: it has no rows of tokens")
                continue
            check_shapes(file, {key: (len(self.token_ids), module.out_features)}, problems)
            beyond = [str(one) for one in self.token_ids if one >= module.in_features]
            if beyond:
                problems.append(
                    f"token_indices: the base has {module.in_features} tokens, not {some(beyond)}"
                )

        def read() -> Parts:
            parts = Parts()
            ids_K = torch.tensor(self.token_ids, dtype=torch.int64)
            for name, key in found.items():
                rows_KH = file.read(key)
                parts.add(name, TokenRows(ids_K, rows_KH))
                head = layout.output_embedding
                if name == layout.input_embedding and layout.tied and head is not None:
                    parts.add(head, TokenLogits(ids_K, rows_KH))
            return parts

        return Contents(modules=tuple(found), read=read)


def read_tokens(fields: Fields) -> TokensSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    # Which embedding, the file's key says.
    fields.take("target_modules", check.names, ())
    ids = fields.take("token_indices", check.token_ids, ())
    if not ids and not fields.complains_of("token_indices"):
        fields.problems.append("token_indices names no token")
    fields.refuse_the_rest(frozenset({"init_weights"}), {})
    return TokensSpec("TRAINABLE_TOKENS", base_model, task_type, ids)
