"""Trainable tokens as a method of their own: rows of an embedding that replace the base's.

<embedding>.trainable_tokens_delta      [tokens, width]
<head>.trainable_tokens_delta           the same rows of an output head

If the base ties the two, PEFT saves one tensor under both names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.base import BaseLayout, ModuleKind
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.keys import PREFIX, sort_keys, unexpected
from lorry_adapters.lora.methods.method import Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields, check_rows, read_own_parts
from lorry_adapters.lora.methods.own_tensors import OwnParts
from lorry_adapters.lora.parts import FileContents, Parts, SpecBase
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.tensor_file import TensorFile

_KEY: Final = "trainable_tokens_delta"


@dataclass(frozen=True, slots=True)
class TokensSpec(SpecBase):
    """Created by `read_tokens` only."""

    token_ids: tuple[int, ...]

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> FileContents:
        keys = sort_keys(file, layout, (_KEY,), problems)
        own = read_own_parts(OwnPartsFields(), None, file, layout, keys.rest, problems)
        problems.extend(unexpected(own.unknown, f"{PREFIX}<embedding>.{_KEY}"))
        found = keys.of(_KEY)
        table, head = layout.input_embedding, layout.output_embedding
        for name, key in found.items():
            module = layout.modules[name]
            if module.kind is not ModuleKind.EMBEDDING and name != head:
                problems.append(f"{shown(name)} is not an embedding, so it has no rows of tokens")
                continue
            check_rows(file, key, module, self.token_ids, "token_indices", problems)
            if layout.tied and name == head and table in found:
                own.same.append((found[table], key))
            else:
                own.tokens[name] = (key, self.token_ids)
        modules = tuple(dict.fromkeys([*found, *own.modules]))
        return FileContents(modules=modules, read=lambda: _read(own))


def _read(own: OwnParts) -> Parts:
    parts = Parts()
    own.read(parts)
    return parts


def read_tokens(fields: Fields, name: str) -> TokensSpec:
    base_model, task_type = fields.base_model(), fields.task_type()
    # The file's key names the embedding.
    fields.take("target_modules", check.names, ())
    ids = fields.take("token_indices", check.token_ids, ())
    if not ids and not fields.complains_of("token_indices"):
        fields.problems.append("token_indices names no token")
    fields.refuse_the_rest(frozenset({"init_weights"}), {})
    return TokensSpec(name, base_model, task_type, ids)


METHODS: Final = (
    Method(
        "TRAINABLE_TOKENS",
        "trainable tokens",
        read_tokens,
        ("trainable_tokens_", "token_adapter."),
        scalable=False,
    ),
)
