"""The base's tokenizer with an adapter's words in it: its added tokens, its names of special
tokens, its chat template."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lorry.api.own_template import OwnTemplates
from lorry_adapters.lora.words import AddedToken, Words


class AdapterTokenizer:
    """What `Prompts` and grammars need of a tokenizer; what the adapter does not bring is the
    base's. Thread-safe."""

    def __init__(
        self,
        base: PreTrainedTokenizerFast,
        words: Words,
        templates: OwnTemplates,
        *,
        vocab_size: int,
    ) -> None:
        """`vocab_size`: tokens that the base has embeddings for; beyond it none is added."""
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
        """As transformers chooses it. ValueError where there is none."""
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
        """As transformers does it, in a process of its own where the template is not the
        base's."""
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


def with_tokens(
    backend: Tokenizer, added: Sequence[AddedToken], vocab_size: int
) -> tuple[Tokenizer, tuple[AddedToken, ...]]:
    """A copy of `backend` that knows `added`, each by its own id, and those of them that do not
    fit: past `vocab_size`, in the place of an ordinary token, or known by another id. Where it
    knows them all, `backend` itself."""
    known = backend.get_added_tokens_decoder()
    added = [one for one in added if one.id not in known or known[one.id].content != one.content]
    if not added:
        # Most adapters: their trainer saved the base's own tokenizer beside them.
        return backend, ()
    tree = json.loads(backend.to_str())
    listed: dict[int, dict[str, Any]] = {token["id"]: token for token in tree["added_tokens"]}
    model = backend.get_vocab(with_added_tokens=False)
    ordinary = set(model.values()) - listed.keys()
    fits: list[AddedToken] = []
    left_out: list[AddedToken] = []
    for token in sorted(added, key=lambda token: token.id):
        elsewhere = model.get(token.content, token.id) != token.id
        fit = token.id < vocab_size and token.id not in ordinary and not elsewhere
        (fits if fit else left_out).append(token)
    while fits:
        made = _listing(tree, listed, fits)
        # The library numbers tokens that its model does not have one after the other.
        moved = [token for token in fits if made.token_to_id(token.content) != token.id]
        if not moved:
            return made, tuple(left_out)
        left_out += moved
        fits = [token for token in fits if token not in moved]
    return backend, tuple(left_out)


def _listing(
    tree: Mapping[str, Any], listed: Mapping[int, Mapping[str, Any]], fits: Sequence[AddedToken]
) -> Tokenizer:
    names = {token.content for token in fits}
    # One that is known by another id, and a reserved one in its place, are not written any more.
    rest = {number: token for number, token in listed.items() if token["content"] not in names}
    whole = {**rest, **{token.id: asdict(token) for token in fits}}
    made = {**tree, "added_tokens": [whole[number] for number in sorted(whole)]}
    vocab = tree["model"].get("vocab")
    if isinstance(vocab, dict):
        # Some tokenizers have their reserved tokens in the model as well.
        renamed = {
            listed[token.id]["content"]: token.content for token in fits if token.id in listed
        }
        vocab = {renamed.get(name, name): number for name, number in vocab.items()}
        made["model"] = {**tree["model"], "vocab": vocab}
    return Tokenizer.from_str(json.dumps(made))
