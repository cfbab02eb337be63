"""The base's tokenizer with an adapter's words: its added tokens, its names of special tokens, its
chat template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from lorry.api.own_template import OwnTemplates
from lorry.engine.vocabulary import with_tokens
from lorry_adapters.lora.words import Words


class AdapterTokenizer:
    """The part of a tokenizer that `Prompts` and grammars need. Whatever the adapter does not bring
    is the base's. Thread-safe."""

    def __init__(
        self,
        base: PreTrainedTokenizerFast,
        words: Words,
        templates: OwnTemplates,
        *,
        vocab_size: int,
    ) -> None:
        """`vocab_size` is the number of the base's embeddings; no token beyond it is added."""
        backend, self.left_out = with_tokens(base.backend_tokenizer, words.added_tokens, vocab_size)
        self.backend_tokenizer = backend
        self.eos_token_id = base.eos_token_id
        self._base = base
        self._own = words.chat_templates
        self._templates = templates
        named = {**base.special_tokens_map, **words.special_tokens}
        self._named = {
            name: text for name, text in named.items() if backend.token_to_id(text) is not None
        }

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """Choose a template like transformers. Raises ValueError if there is none."""
        if chat_template is None and tools is not None and "tool_use" in self._own:
            return self._own["tool_use"]
        if chat_template is None and "default" in self._own:
            return self._own["default"]
        return str(self._base.get_chat_template(chat_template, tools))

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        **variables: Any,
    ) -> str:
        """Render like transformers, in a process of its own if the template is not the base's."""
        assert not tokenize
        source = self.get_chat_template(chat_template, tools)
        options: dict[str, Any] = {
            **self._named,
            **variables,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        if source not in self._own.values() and source in self._of_base():
            made = self._base.apply_chat_template(
                conversation, chat_template=source, tokenize=False, **options
            )
            return str(made)
        messages = [
            {key: value for key, value in message.items() if value is not None}
            for message in conversation
        ]
        return self._templates.render(source, {**options, "messages": messages})

    def _of_base(self) -> Collection[str]:
        given = self._base.chat_template
        return given.values() if isinstance(given, dict) else (given or "",)
