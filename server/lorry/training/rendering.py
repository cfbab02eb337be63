"""Examples as token ids, with the tokens that are learned marked.

A chat is written by the base's own chat template, as the server writes it, so that training sees
what serving will send. An answer is what the template adds to the prompt that asks for it:

    prompt     template(messages before the answer, add_generation_prompt=True)
    answer     what template(messages through the answer) has beyond the prompt

A template may write earlier turns in another way than the last one (without its reasoning, say).
Such a chat becomes several sequences, each with the answers that it shows as they were asked for.

Prompt and answer are made tokens separately, as the server makes tokens of the prompt alone. The
last token that is learned is one at which the server stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lorry.api.chat_template import REFUSALS, ChatTemplate
from lorry.errors import TrainingError
from lorry.training.examples import ChatExample, Example, PairExample, TextExample


class PairForm(StrEnum):
    """How a prompt with a completion is written."""

    CHAT = "chat"
    """As one turn of a chat."""
    RAW = "raw"
    """The prompt, the completion, and the end of the text."""
    MIXED = "mixed"
    """As a chat and raw, a blank or a line's end between the two, so that the adapter works with
    the chat template and without."""


@dataclass(frozen=True, slots=True)
class LearnedTokens:
    """Token ids of a sequence; `learned[i]` is true if token i carries loss."""

    where: str
    ids: tuple[int, ...]
    learned: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    learned: bool
    start: bool = False
    """True if the tokenizer's own beginning of a text belongs before it."""
    end: bool = False
    """True if an end of the text belongs after it."""


class Renderer:
    """Makes sequences of examples for one base."""

    def __init__(
        self, tokenizer: Any, stop_ids: frozenset[int], pair_form: PairForm | None
    ) -> None:
        """`stop_ids`: tokens at which the server stops. `pair_form` None: a chat if the base has a
        template, raw otherwise.

        Raises TrainingError if a chat is asked for and the base has no template.
        """
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._source = tokenizer.chat_template
        self._template = ChatTemplate(self._source, self._written) if self._source else None
        if pair_form is None:
            pair_form = PairForm.CHAT if self._template else PairForm.RAW
        if pair_form is not PairForm.RAW and self._template is None:
            raise TrainingError(
                f"--form {pair_form}: this base has no chat template; use --form raw"
            )
        self._pair_form = pair_form

    def sequences(self, examples: Sequence[Example]) -> list[LearnedTokens]:
        """Raises TrainingError naming the first example that the template refuses."""
        return [
            self._sequence(example.where, pieces)
            for index, example in enumerate(examples)
            for pieces in self._pieces(example, index)
        ]

    def _pieces(self, example: Example, index: int) -> Iterator[list[_Piece]]:
        match example:
            case TextExample():
                yield [_Piece(example.text, True, start=True, end=True)]
            case ChatExample():
                yield from self._chat(example)
            case PairExample():
                yield from self._pair(example, index)

    def _pair(self, pair: PairExample, index: int) -> Iterator[list[_Piece]]:
        if self._pair_form is not PairForm.RAW:
            messages = (
                {"role": "user", "content": pair.prompt},
                {"role": "assistant", "content": pair.completion},
            )
            yield from self._chat(ChatExample(pair.where, messages, (1,)))
        prompt, completion = pair.prompt, pair.completion
        if self._pair_form is PairForm.MIXED:
            # In turns: a blank belongs to the answer's first word, a line's end to the question.
            prompt, completion = (
                (prompt, " " + completion) if index % 2 == 0 else (prompt + "\n", completion)
            )
        if self._pair_form is not PairForm.CHAT:
            yield [
                _Piece(prompt, False, start=True),
                _Piece(completion, True, end=True),
            ]

    def _chat(self, chat: ChatExample) -> Iterator[list[_Piece]]:
        if self._template is None:
            raise TrainingError(
                f"{chat.where} is a chat, and this base has no chat template; use prompts with "
                "completions"
            )
        messages = self._template.fitted(chat.messages)
        tools = [dict(tool) for tool in chat.tools] or None
        found: list[tuple[str, list[tuple[int, int]]]] = []
        for place in reversed(chat.learned):
            try:
                before = self._written(messages[:place], tools=tools, add_generation_prompt=True)
                through = self._written(messages[: place + 1], tools=tools)
            except REFUSALS as error:
                raise TrainingError(
                    f"{chat.where}: the chat template refuses it: {error}"
                ) from None
            if not through.startswith(before):
                raise TrainingError(
                    f"{chat.where}: the chat template writes message {place + 1} in another way "
                    "than it asks for it, so that what is to be learned cannot be told; give "
                    "prompts with completions and --form raw"
                )
            span = (len(before), len(through.rstrip()))
            for text, spans in found:
                if text.startswith(through):
                    spans.append(span)
                    break
            else:
                found.append((through, [span]))
        for text, spans in reversed(found):
            yield list(_cut(text, sorted(spans)))

    def _written(self, messages: Any, /, *, tools: Any = None, **more: Any) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tools=tools, tokenize=False, **more
            )
        )

    def _sequence(self, where: str, pieces: Sequence[_Piece]) -> LearnedTokens:
        ids: list[int] = []
        learned: list[bool] = []
        for piece in pieces:
            tokens = list(self._tokenizer(piece.text, add_special_tokens=False).input_ids)
            if piece.start:
                tokens = self._beginning() + tokens
            if piece.learned and (piece.end or piece is pieces[-1]):
                tokens = self._stopped(tokens)
            ids += tokens
            learned += [piece.learned] * len(tokens)
        return LearnedTokens(where, tuple(ids), tuple(learned))

    def _beginning(self) -> list[int]:
        """What the tokenizer puts before a prompt."""
        with_marks = list(self._tokenizer("a").input_ids)
        alone = list(self._tokenizer("a", add_special_tokens=False).input_ids)
        return with_marks[: len(with_marks) - len(alone)] if with_marks[-1:] == alone[-1:] else []

    def _stopped(self, tokens: list[int]) -> list[int]:
        """The tokens with one at the end at which the server stops."""
        end = self._tokenizer.eos_token_id
        if (tokens[-1:] and tokens[-1] in self._stop_ids) or end is None:
            return tokens
        return [*tokens, end]


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[_Piece]:
    """The text up to the end of the last span, in pieces that are learned and pieces that are
    not. Templates write the beginning of a text themselves."""
    at = 0
    for start, end in spans:
        yield _Piece(text[at:start], False)
        yield _Piece(text[start:end], True)
        at = end
