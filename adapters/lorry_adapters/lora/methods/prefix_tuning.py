"""Prefix tuning (and Cartridges): keys and values before the prompt, for every layer.

    prompt_embeddings           [N, 2 * layers * heads * head size]

If a projection was trained with it, PEFT has applied that before saving.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.methods.method import Method, VirtualTokenKind
from lorry_adapters.lora.methods.prompt_tuning import (
    NOT_SERVED,
    PROMPT_KEY,
    TRAINING,
    PromptSpecBase,
    check_tensors,
    read_shared,
)
from lorry_adapters.lora.parts import FileContents, Parts
from lorry_adapters.lora.prompt import KeyValuePrefix
from lorry_adapters.lora.tensor_file import TensorFile


@dataclass(frozen=True, slots=True)
class PrefixSpec(PromptSpecBase):
    """Created by `read_prefix` only."""

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> FileContents:
        layers, heads, size = layout.num_layers, layout.kv_heads, layout.head_size
        if not heads:
            problems.append(
                f"{self.peft_type} is not served on the base {layout.name} "
                f"({layout.architecture}): its layers do not all keep keys and values of the shape "
                "that PEFT gives them"
            )
        else:
            wanted = {PROMPT_KEY: (self.count, layers * 2 * heads * size)}
            check_tensors(file, wanted, problems, sound=sound)
            for key, given, of_base in (
                ("num_layers", self.num_layers, layers),
                ("num_attention_heads", self.num_attention_heads, heads),
                ("token_dim", self.token_dim, heads * size),
            ):
                if given not in (None, of_base):
                    problems.append(
                        f"{key} is {given}; the keys of the base {layout.name} have {of_base}"
                    )

        def read() -> Parts:
            return Parts(prompt=KeyValuePrefix.of(file.read(PROMPT_KEY), layers, heads, size))

        return FileContents(modules=(), read=read, virtual_tokens=self.count)


def read_prefix(fields: Fields, name: str) -> PrefixSpec:
    spec = PrefixSpec(*read_shared(fields, name))
    fields.refuse_the_rest(TRAINING, NOT_SERVED)
    return spec


METHODS: Final = tuple(
    Method(
        name,
        title,
        read_prefix,
        virtual_tokens=VirtualTokenKind.KEYS_AND_VALUES,
        scalable=False,
    )
    for name, title in (("PREFIX_TUNING", "prefix tuning"), ("CARTRIDGE", "Cartridge"))
)
