"""What becomes of every decoder that transformers has: known here, held by
`tests/oracle/test_decoders.py`, and a table in docs/bases.md.

What is in no list here is served packed. `python -m support.decoder_outcomes --write` renews
the table.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import transformers

from support import decoders
from support.decoder_lists import (
    ADAPTER_REFUSED,
    NO_EXPERTS,
    NOT_TINY,
    PADDED,
    REFUSED,
    UNDESCRIBED,
)
from support.decoders import Decoder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bases.md"
_SECTION = re.compile(r"(<!-- decoders: begin -->\n)(.*?)(<!-- decoders: end -->)", re.DOTALL)


class Question(StrEnum):
    BASE = "base"
    ADAPTER = "adapter"
    EXPERTS = "experts"
    INT8 = "int8"
    NF4 = "nf4"
    COMPILED = "compiled"


@dataclass(frozen=True, slots=True)
class Case:
    decoder: Decoder
    question: Question

    @property
    def name(self) -> str:
        return f"{self.decoder.name}, {self.question}".replace(", ", "-").replace(" ", "_")

    @property
    def refused(self) -> str | None:
        """Words of the refusal; None where it is served."""
        name = self.decoder.name
        if self.question is Question.COMPILED:
            return UNDESCRIBED.get(name)
        if name in REFUSED:
            return REFUSED[name]
        if self.question is Question.ADAPTER:
            return ADAPTER_REFUSED.get(self.decoder.model_type)
        return None

    @property
    def padded(self) -> bool:
        return self.decoder.name in PADDED


HARD = (
    "bert", "big_bird", "doge", "doge, experts", "falcon, alibi", "falcon_h1", "got_ocr2",
    "laguna", "lfm2", "llama4_text", "minimax", "phi3, longrope", "phimoe", "qwen2_moe, sliding",
    "recurrent_gemma",
)  # fmt: skip
"""What was served wrongly once, and what is built unlike the rest: asked everything each time."""


def cases() -> Iterator[Case]:
    """Every class and variant, with every question that it can be asked; thousands, with all
    kinds of rotary frequencies."""
    for decoder in [*decoders.decoders(), *decoders.variants()]:
        if decoder.name not in NOT_TINY:
            yield from (Case(decoder, question) for question in _questions(decoder))
    for decoder in decoders.rotary():
        yield Case(decoder, Question.BASE)


def _questions(decoder: Decoder) -> Iterator[Question]:
    for question in Question:
        if question is Question.EXPERTS and decoder.model_type in NO_EXPERTS:
            continue
        if question is Question.COMPILED and decoder.name in REFUSED:
            continue
        yield question


def chosen() -> Iterator[Case]:
    """A part for every run: each class as it is, each that is served and its variants on the
    compiled step, and the hard ones with every question."""
    rope = [decoders.with_rope(Decoder(name), "longrope") for name in ("phi3",)]
    for decoder in [*decoders.decoders(), *decoders.variants(), *filter(None, rope)]:
        if decoder.name in NOT_TINY:
            continue
        for question in _questions(decoder):
            plain = question is Question.BASE and not decoder.variant
            if plain or question is Question.COMPILED or decoder.name in HARD:
                yield Case(decoder, question)


def table() -> str:
    """Each class once, by what becomes of it; variants where they differ."""
    found = [d for d in decoders.decoders() if d.name not in NOT_TINY]
    ways = {
        "packed in one row": [d for d in found if not {d.name} & {*REFUSED, *PADDED}],
        "padded": [d for d in found if d.name in PADDED],
    }
    refused: dict[str, list[str]] = {}
    for name, reason in REFUSED.items():
        refused.setdefault(reason, []).append(name)
    classes = sum(1 for name in REFUSED if "," not in name)
    lines = [
        f"{len(decoders.decoders())} classes of transformers {transformers.__version__}: "
        + ", ".join(f"{len(names)} {way}" for way, names in ways.items())
        + f", {classes} refused, {len(decoders.decoders()) - len(found)} not made tiny.",
        "",
        "| served | model types |",
        "|---|---|",
        *(f"| {way} | {_listed([d.name for d in names])} |" for way, names in ways.items()),
        "",
        "| of those, with quantized weights on a CPU | model types |",
        "|---|---|",
        *_compiled([d.name for names in ways.values() for d in names]),
        "",
        "| refused at start, with these words | model types |",
        "|---|---|",
        *(f"| {_cell(reason)} | {_listed(names)} |" for reason, names in sorted(refused.items())),
        "",
        "| served, but for an adapter on every linear (`all-linear`) | model types |",
        "|---|---|",
        *_adapters(),
        "",
        "| not made tiny | why |",
        "|---|---|",
        *(f"| `{name}` | {_cell(reason)} |" for name, reason in sorted(NOT_TINY.items())),
        "",
    ]
    return "\n".join(lines)


def _compiled(served: list[str]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for name in served:
        by_reason.setdefault(UNDESCRIBED.get(name, ""), []).append(name)
    yield f"| on the compiled step | {_listed(by_reason.pop(''))} |"
    for reason, names in sorted(by_reason.items()):
        yield f"| on PyTorch's operations: {_cell(reason)} | {_listed(names)} |"


def _adapters() -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in ADAPTER_REFUSED.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in sorted(by_reason.items()):
        yield f"| {_cell(reason)} | {_listed(names)} |"


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def written() -> str:
    """What docs/bases.md says."""
    found = _SECTION.search(PAGE.read_text())
    assert found is not None, "docs/bases.md has no section for decoders"
    return found.group(2)


def main() -> None:
    if "--write" in sys.argv:
        text = PAGE.read_text()
        PAGE.write_text(_SECTION.sub(lambda m: m.group(1) + table() + m.group(3), text))
    else:
        sys.stdout.write(table())


if __name__ == "__main__":
    main()
