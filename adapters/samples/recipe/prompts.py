"""From data lines to token ids: the forms in which people will really ask.

A sample has to work through a chat template (`/v1/chat/completions`) and on raw text
(`/generate`), so every example is shown in both, in turn over the epochs:

    chat   the base's chat template, then the answer
    space  the bare prompt, then " " and the answer
    line   the bare prompt and a newline, then the answer

Every answer ends with the end-of-sequence token, and only the answer carries loss.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMS = ("chat", "space", "chat", "line")


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a data file."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example; `ids[answer_from:]` carry loss."""

    ids: list[int]
    answer_from: int


def read_examples(path: Path) -> list[Example]:
    """All examples of a JSONL file; ValueError names the line that is not one."""
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if set(row) != {"prompt", "answer"} or not all(isinstance(v, str) for v in row.values()):
            raise ValueError(f"{path.name}:{number}: a line has exactly a prompt and an answer")
        examples.append(Example(**row))
    return examples


def chat_prompt(tokenizer: Any, prompt: str) -> str:
    """The prompt as the only user message of a chat, ready for the assistant's answer."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return text


def encode(tokenizer: Any, example: Example, form: str) -> Encoded:
    """Token ids of `example` in one of FORMS."""
    before, answer = {
        "chat": (lambda: (chat_prompt(tokenizer, example.prompt), example.answer)),
        "space": (lambda: (example.prompt, " " + example.answer)),
        "line": (lambda: (example.prompt + "\n", example.answer)),
    }[form]()
    prompt_ids = tokenizer(before, add_special_tokens=False).input_ids
    answer_ids = tokenizer(answer, add_special_tokens=False).input_ids
    return Encoded([*prompt_ids, *answer_ids, tokenizer.eos_token_id], len(prompt_ids))
