"""Trainable tokens as a method of its own: rows of an embedding, in place of the base's.

<embedding>.trainable_tokens_delta      [tokens, width]
<head>.trainable_tokens_delta           the same rows of an output head

Where the base ties the two, PEFT saves one tensor under both names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import fields as check
from lorry_adapters.lora.base import BaseLayout, ModuleKind
from lorry_adapters.lora.fields import Fields
from lorry_adapters.lora.keys import PREFIX, sort_keys, unexpected
from lorry_adapters.lora.methods.own_parts import check_rows, differences
from lorry_adapters.lora.parts import Contents, Parts, SpecBase
from lorry_adapters.lora.problems import shown
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
            if module.kind is not ModuleKind.EMBEDDING and name != layout.output_embedding:
                problems.append(f"{shown(name)} is no embedding: it has no rows of tokens")
                continue
            check_rows(file, key, module, self.token_ids, "token_indices", problems)
        return Contents(modules=tuple(found), read=lambda: self._read(file, layout, found))

    def _read(self, file: TensorFile, layout: BaseLayout, found: Mapping[str, str]) -> Parts:
        parts = Parts()
        ids_K = torch.tensor(self.token_ids, dtype=torch.int64)
        rows = {name: file.read(key) for name, key in found.items()}
        table, head = layout.input_embedding, layout.output_embedding
        if layout.tied and table in rows and head is not None:
            twin_KH = rows.setdefault(head, rows[table])
            problems = differences(table, rows[table], head, twin_KH)
            if problems:
                raise InvalidAdapter(problems)
        for name, rows_KH in rows.items():
            is_head = layout.modules[name].kind is not ModuleKind.EMBEDDING
            parts.add(name, (TokenLogits if is_head else TokenRows)(ids_K, rows_KH))
        return parts


def read_tokens(fields: Fields) -> TokensSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    # Which embedding, the file's key says.
    fields.take("target_modules", check.names, ())
    ids = fields.take("token_indices", check.token_ids, ())
    if not ids and not fields.complains_of("token_indices"):
        fields.problems.append("token_indices names no token")
    fields.refuse_the_rest(frozenset({"init_weights"}), {})
    return TokensSpec("TRAINABLE_TOKENS", base_model, task_type, ids)
