"""What a server should answer, token for token, from PEFT alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from lorry_adapters.registry.blobs import digest_of
from support.peft_oracle import PeftOracle


class Truth:
    """Greedy answers of one tiny base, by prompt and by the adapters an answer names.

    Every answer is remembered: a test may ask the same of many.
    """

    def __init__(self, model: Path) -> None:
        self._oracle = PeftOracle(model)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._folders: dict[str, Path] = {}
        self._known: dict[tuple[object, ...], list[int]] = {}

    def learn(self, folder: Path) -> str:
        """Makes an adapter's content known; its digest."""
        digest = digest_of(folder)
        self._folders[digest] = folder
        return digest

    def tokens(self, prompt: str, adapters: Iterable[Mapping[str, Any]], count: int) -> list[int]:
        """The next `count` tokens; `adapters` as the server's answers list them."""
        active = sorted((a["digest"], a["scale"]) for a in adapters if a["scale"] != 0)
        key = (prompt, *active)
        answer = self._known.setdefault(key, [])
        if len(answer) < count:
            ids = [*self._tokenizer(prompt).input_ids, *answer]
            chosen = [(self._folders[digest], scale) for digest, scale in active]
            answer += self._oracle.greedy(chosen, ids, count - len(answer))
        return answer[:count]

    def base(self, prompt: str, count: int) -> list[int]:
        return self.tokens(prompt, (), count)
