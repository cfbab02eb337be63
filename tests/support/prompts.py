"""What the tests ask."""

from __future__ import annotations

import random

from support.tokenizer import SPECIAL, VOCAB_SIZE


def random_prompt(length: int, seed: int) -> list[int]:
    """Random tokens, no special ones."""
    random_ = random.Random(seed)
    return [random_.randrange(len(SPECIAL), VOCAB_SIZE) for _ in range(length)]
