"""Converts text to token ids and back: encoding, truncation, one token's text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from copy import copy
from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lorry.api import control_tokens
from lorry.api.adapter_tokenizer import AdapterTokenizer
from lorry.api.byte_alphabet import bytes_of_alphabet, decoder_kinds
from lorry.api.calls.notation import Notation
from lorry.api.chats import Chats
from lorry.api.reasoning import Choice, thoughts_in
from lorry.api.tool_prompt import ToolPrompt
from lorry.api.workers import Workers
from lorry.errors import InvalidRequest

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a text, for `/tokenize`."""

    id: int
    text: str
    start: int
    stop: int


class Prompts:
    """The tokenizer for requests. Thread-safe: the tokenizer's state never changes."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        vocab_size: int | None = None,
        *,
        tool_prompt: ToolPrompt = ToolPrompt.AUTO,
        notation: Notation | None = None,
        thoughts: Choice = thoughts_in,
    ) -> None:
        """`notation`: the base's notation of calls; None for that of its template."""
        self._workers = Workers()
        self.chats = Chats(
            tokenizer, self._workers, tool_prompt=tool_prompt, notation=notation, thoughts=thoughts
        )
        # A tokenizer.json may set truncation and padding. The first call removes them, so that a
        # later one has nothing to change while another thread encodes.
        tokenizer("")
        self.vocab_size = vocab_size or len(tokenizer)
        self._take(tokenizer.backend_tokenizer)

    def _take(self, backend: Tokenizer) -> None:
        self._backend = backend
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(one for one, token in added.items() if token.special)
        self._added_ids = frozenset(added)
        self._special_names = {added[one].content: one for one in self.special_ids}
        names = [token.content for token in added.values() if token.special and token.content]
        # A pattern without alternatives would match everywhere.
        self._special = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")
        kinds = decoder_kinds(self._backend)
        self._byte_of = bytes_of_alphabet() if "ByteLevel" in kinds else None
        self._only_bytes = kinds == ["ByteLevel"]
        # Filled as tokens come; at most as long as the vocabulary.
        self._wholes: dict[int, str | None] = {}
        self._front = self._added_in_front()

    def with_tokenizer(
        self, tokenizer: AdapterTokenizer, rendering: Executor, *, foreign: bool = False
    ) -> Prompts:
        """Return the same with an adapter's tokenizer. `rendering`: the threads that wait for
        untrusted chat templates; `foreign`: its own template is one."""
        made = copy(self)
        if tokenizer.backend_tokenizer is not self._backend:
            made._take(tokenizer.backend_tokenizer)
        made.chats = self.chats.with_tokenizer(tokenizer, rendering, foreign=foreign)
        return made

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of all tokens, with special tokens and without cleanup."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def text_of(self, token_id: int) -> str:
        """Return the text of one token by itself; U+FFFD if it is not a whole character."""
        return self.decode((token_id,))

    def name_of(self, token_id: int) -> str:
        """Return a special token's name; for any other token, its text."""
        if token_id in self._added_ids:
            return str(self._backend.id_to_token(token_id))
        return self.text_of(token_id)

    def with_special(self, texts: Sequence[str], ends: Iterable[int]) -> frozenset[str]:
        """Return those of `texts` that contain a special token's name. `ends` are end tokens, which
        a tokenizer need not declare as special."""
        names = [self.name_of(one) for one in ends] if texts else []
        return frozenset(
            one
            for one in texts
            if self._special.search(one) or any(name and name in one for name in names)
        )

    def special_ids_of(self, names: Iterable[str]) -> frozenset[int]:
        """Return the ids of the special tokens with these names."""
        known = self._special_names
        return frozenset(known[name] for name in names if name in known)

    def whole(self, token_id: int) -> str | None:
        """Return the text of a token if it is the same everywhere: the decoder only joins bytes,
        and the token's bytes are whole characters. Otherwise None."""
        try:
            return self._wholes[token_id]
        except KeyError:
            made = self._wholes[token_id] = self._make_whole(token_id)
            return made

    def _make_whole(self, token_id: int) -> str | None:
        token = self._backend.id_to_token(token_id)
        byte_of = self._byte_of
        if token is None or byte_of is None or not self._only_bytes or token_id in self._added_ids:
            return None
        if not all(char in byte_of for char in token):
            return None
        text = bytes(byte_of[char] for char in token).decode(errors="replace")
        # Some vocabularies contain U+FFFD itself, which looks like half a character in a text.
        return None if "\ufffd" in text else text

    def bytes_of(self, token_id: int) -> list[int] | None:
        """Return the bytes of a token, or None if the tokenizer does not show them."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return None
        if token_id in self._added_ids:
            return list(token.encode())
        if self._byte_of is not None and all(char in self._byte_of for char in token):
            return [self._byte_of[char] for char in token]
        match = _BYTE_TOKEN.fullmatch(token)
        if match is not None:
            return [int(match[1], 16)]
        text = self.text_of(token_id)
        return None if "\ufffd" in text else list(text.encode())

    async def encode(
        self,
        text: str,
        *,
        param: str,
        add_special_tokens: bool | None = None,
        truncate: int | None = None,
        marked: bool = False,
    ) -> list[int]:
        """Return the token ids of a prompt. `truncate` keeps that many of the last tokens, in
        addition to those that the tokenizer adds before the text. Raises InvalidRequest for an
        empty prompt.

        `add_special_tokens`: whether the tokenizer's special tokens are added around the text. None
        adds them, except those with which the text already begins: a chat rendered by a template
        contains its beginning of text.

        `marked`: the text comes from `Chats.rendered`, with marks around control tokens in
        messages."""
        (ids,) = await self.encode_all(
            [text],
            param=param,
            add_special_tokens=add_special_tokens,
            truncate=truncate,
            marked=marked,
        )
        return ids

    async def encode_all(
        self,
        texts: Sequence[str],
        *,
        param: str,
        add_special_tokens: bool | None = None,
        truncate: int | None = None,
        marked: bool = False,
    ) -> list[list[int]]:
        """Like `encode`, for several prompts."""
        if not all(texts):
            raise InvalidRequest(f"{param} is empty; send at least one character", param=param)

        def work() -> list[list[int]]:
            return [
                self._encoded(text, param, add_special_tokens, truncate, marked) for text in texts
            ]

        return await self._workers.run(sum(map(len, texts)), work)

    def _encoded(
        self,
        text: str,
        param: str,
        add_special_tokens: bool | None,
        truncate: int | None,
        marked: bool,
    ) -> list[int]:
        ids = self._marked(text, bool(add_special_tokens)) if marked else None
        if ids is None:
            ids = self._ids(text, add_special_tokens is not False)
        if add_special_tokens is None:
            ids = ids[self._doubled(ids) :]
        if truncate is not None and len(ids) > truncate:
            front = 0 if add_special_tokens is False else len(self._front)
            kept = truncate - front
            ids = ids[:front] + ids[-kept:] if kept > 0 else ids[-truncate:]
        if not ids:
            raise InvalidRequest(f"{param} has no tokens", param=param)
        if max(ids) >= self.vocab_size:
            raise InvalidRequest(
                f"{param} contains the token {self.text_of(max(ids))!r}, for which this base has "
                "no embedding",
                param=param,
            )
        return ids

    async def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Encode pairs of texts, joined by the tokenizer's template for pairs."""

        def work() -> list[list[int]]:
            return [list(one.ids) for one in self._backend.encode_batch_fast(list(pairs))]

        return await self._workers.run(sum(len(a) + len(b) for a, b in pairs), work)

    def written(self, ids: Sequence[int]) -> list[str]:
        """Return tokens as they are in the vocabulary."""
        return [str(self._backend.id_to_token(one)) for one in ids]

    async def pieces(self, text: str, *, add_special_tokens: bool | None) -> list[Piece]:
        """Return the tokens of a text, as from `encode`, with their positions in it."""

        def work() -> list[Piece]:
            (encoded,) = self._backend.encode_batch(
                [text], add_special_tokens=add_special_tokens is not False
            )
            found = zip(encoded.ids, encoded.offsets, strict=True)
            pieces = [
                Piece(token_id, text[start:stop] or self.text_of(token_id), start, stop)
                for token_id, (start, stop) in found
            ]
            return pieces[self._doubled(encoded.ids) if add_special_tokens is None else 0 :]

        return await self._workers.run(len(text), work)

    async def encode_words(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of words in the middle of a text."""

        def work() -> list[list[int]]:
            return [self._ids(text, False) for text in texts]

        return await self._workers.run(sum(map(len, texts)), work)

    def _marked(self, text: str, add_special_tokens: bool) -> list[int] | None:
        ids = control_tokens.encoded(text, lambda part: self._ids(part, False))
        return ids if ids is None or not add_special_tokens else [*self._front, *ids]

    def _added_in_front(self) -> list[int]:
        """Return the tokens that the tokenizer adds before a text."""
        plain, whole = self._ids("a", False), self._ids("a", True)
        places = range(len(whole) - len(plain) + 1)
        at = next((one for one in places if whole[one : one + len(plain)] == plain), 0)
        return whole[:at]

    def _doubled(self, ids: Sequence[int]) -> int:
        """Return how many of the first `ids` were added before a text that begins with the same."""
        count = len(self._front)
        return count if list(ids[: 2 * count]) == self._front * 2 else 0

    async def check_ids(self, ids: Sequence[int], *, param: str) -> list[int]:
        """Check a prompt given as token ids. Raises InvalidRequest."""
        return await self._workers.run(len(ids), lambda: self._checked(ids, param))

    def _checked(self, ids: Sequence[int], param: str) -> list[int]:
        if not ids:
            raise InvalidRequest(f"{param} has no tokens", param=param)
        for one in ids:
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < self.vocab_size:
                raise InvalidRequest(
                    f"{param}: {json.dumps(one)[:40]} is not a token id; they go from 0 to "
                    f"{self.vocab_size - 1}",
                    param=param,
                )
        return list(ids)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        # `encode` holds the interpreter in any thread, for a second with a prompt of a megabyte,
        # and blocks the event loop and the engine. `encode_batch_fast` does not.
        (encoded,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoded.ids)
