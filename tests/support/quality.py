"""How far a served base is from bitsandbytes' own forward pass, on prose and on real questions.

    PYTHONPATH=tests python -m support.quality [FOLDER]

prints the tables of benchmarks/README.md. `tests/oracle/test_quality.py` holds the distances.

Perplexity is of public-domain prose (Carroll, Melville, Austen, Darwin, Dickens), in windows that
know nothing of each other. Greedy tokens are compared along one set of answers, those that the
unquantized base gives to eight questions: at each of their tokens a model says what it would
have said there. Answers left to themselves part at the first difference and are then two texts.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from statistics import fmean

import platformdirs
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorry.core import Batch, Row, Sample, SamplingParams
from lorry.errors import ModelError
from lorry.model import known_bases
from lorry.settings import DEFAULT_MODEL
from support.executor_driver import BLOCK_SIZE, Ask, ExecutorDriver
from support.peft_oracle import PeftOracle

TEXTS = Path(__file__).parent / "texts"
WINDOW = 256
ANSWER = 32
"""Tokens of each answer."""

Answers = list[list[int]]
"""Token ids, by question."""


def default_base(home: Path) -> Path:
    """The folder of the default base: the user's own where they have it, else in `home`.

    Raises ModelError where it has to be fetched and cannot be.
    """
    base = known_bases.find(DEFAULT_MODEL)
    assert base is not None
    own = platformdirs.user_data_path("lorry", appauthor=False)
    there = known_bases.folder_of(base, own).is_dir()
    return known_bases.pull(base, own if there else home, lambda _: None, lambda *_: None)


def base_of_run(pytestconfig: pytest.Config) -> Path:
    """`default_base`, kept between runs. Skips the test where it cannot be had, unless in CI."""
    assert pytestconfig.cache is not None
    try:
        return default_base(pytestconfig.cache.mkdir("lorry"))
    except ModelError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the default base is not on this machine and cannot be fetched: {error}")


@dataclass(frozen=True, slots=True, repr=False)
class Said:
    """What one way of running the base says of the same texts."""

    logprobs: list[float]
    """Of every token of the prose but each window's first."""
    greedy: Answers
    """Its own choice at every token of the shared answers."""

    @property
    def perplexity(self) -> float:
        return math.exp(-fmean(self.logprobs))

    def against(self, other: Said) -> float:
        """Its perplexity over the other's."""
        return self.perplexity / other.perplexity

    def distance(self, other: Said) -> float:
        """The mean difference of a token's log-probability: what a perplexity averages away."""
        pairs = zip(self.logprobs, other.logprobs, strict=True)
        return fmean(abs(mine - theirs) for mine, theirs in pairs)

    def agreement(self, other: Said) -> float:
        """The share of greedy tokens that are the same."""
        mine, theirs = (list(chain.from_iterable(said.greedy)) for said in (self, other))
        return fmean(float(a == b) for a, b in zip(mine, theirs, strict=True))


class Quality:
    """The texts, in tokens of one base, and every way of running it."""

    def __init__(self, folder: Path, windows: int | None = None) -> None:
        """`windows`: of the prose, that many; None takes all."""
        self._folder = folder
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer((TEXTS / "prose.txt").read_text())["input_ids"]
        cuts = list(pairwise(range(0, len(ids) + 1, WINDOW)))[:windows]
        self.windows: list[list[int]] = [ids[start:stop] for start, stop in cuts]
        self.whole: list[int] = list(chain.from_iterable(self.windows))
        """The same as one context."""
        self.questions: list[list[int]] = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": line}], add_generation_prompt=True, return_dict=False
            )
            for line in (TEXTS / "questions.txt").read_text().splitlines()
        ]

    @cached_property
    def answers(self) -> Answers:
        """What the unquantized base answers, greedily; its end of text does not stop it."""
        model = AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32).eval()
        longest = max(map(len, self.questions))
        pads = [longest - len(ids) for ids in self.questions]
        ids = torch.tensor([[0] * pad + ids for pad, ids in zip(pads, self.questions, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        made = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=ANSWER, min_new_tokens=ANSWER
        )
        found: Answers = made[:, longest:].tolist()
        return found

    def transformers(self, quantization: str) -> Said:
        """bitsandbytes' own forward pass; `none` is the unquantized base."""
        oracle = PeftOracle(self._folder, quantization)
        logprobs = [p for ids in self.windows for p in oracle.prompt_logprobs([], ids)]
        greedy = [
            oracle.logprobs([], question + answer)[len(question) - 1 : -1].argmax(1).tolist()
            for question, answer in zip(self.questions, self.answers, strict=True)
        ]
        return Said(logprobs, greedy)

    def served(
        self, quantization: str, kernels: str, kv_cache: str = "auto", *, whole: bool = False
    ) -> Said:
        """The executor of the server; answers come token by token, all in one batch. `whole`: the
        prose as one context."""
        driver = ExecutorDriver(
            self._folder, quantization=quantization, kernels=kernels, kv_cache=kv_cache
        )
        windows = [self.whole] if whole else self.windows
        try:
            logprobs = [p for ids in windows for p in driver.score([Ask([], ids)], chunk=512)[0]]
            return Said(logprobs, list(map(list, zip(*self._steps(driver), strict=True))))
        finally:
            driver.close()

    def _steps(self, driver: ExecutorDriver) -> Iterator[list[int]]:
        """What each question's row draws, step by step, as it is told what it had drawn."""
        params = SamplingParams(max_new_tokens=ANSWER)
        blocks = iter(range(10**6))
        held = [
            [next(blocks) for _ in range(-(-(len(question) + ANSWER) // BLOCK_SIZE))]
            for question in self.questions
        ]
        for done in range(ANSWER):
            rows = []
            for index, (question, answer) in enumerate(
                zip(self.questions, self.answers, strict=True)
            ):
                tokens = question + answer[:done]
                start = 0 if done == 0 else len(tokens) - 1
                rows.append(
                    Row(
                        request_id=str(index),
                        token_ids=tokens[start:],
                        start=start,
                        blocks=held[index],
                        adapters=(),
                        sample=Sample(params, question, answer[:done], None),
                        prompt_targets=None,
                    )
                )
            results = driver.executor.run(Batch(tuple(rows)))
            yield [one.token.token_id for result in results for one in result.drawn]


PATHS = (("int8", "compiled"), ("int8", "torch"), ("nf4", "compiled"), ("nf4", "torch"))
"""Quantization and kernels of what is served on a CPU."""


def table(folder: Path) -> str:
    """All of it, over the whole text, in Markdown."""
    quality = Quality(folder)
    plain = quality.transformers("none")
    theirs = {kind: quality.transformers(kind) for kind in ("int8", "nf4")}
    tokens = sum(map(len, quality.windows))
    lines = [
        f"{tokens} tokens of prose, {len(quality.questions)} answers of {ANSWER} tokens.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        _line("fp32, transformers", plain, plain, None),
    ]
    for kind, said in theirs.items():
        lines.append(_line(f"{kind}, bitsandbytes' own", said, plain, None))
    for kind, kernels in PATHS:
        said = quality.served(kind, kernels)
        lines.append(_line(f"{kind}, served, {kernels}", said, plain, theirs[kind]))
    return "\n".join(lines)


def table_of_caches(folder: Path) -> str:
    """A KV cache in bytes beside one in half precision, in Markdown."""
    quality = Quality(folder)
    columns = ("perplexity", "to half precision", "logprobs off", "greedy tokens as with it")
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (1 + len(columns))]
    for kind in ("int8", "nf4"):
        for whole in (False, True):
            half, said = (
                quality.served(kind, "compiled", cache, whole=whole) for cache in ("auto", "int8")
            )
            context = f"{len(quality.whole)} tokens" if whole else f"windows of {WINDOW}"
            ratio, off = said.against(half), said.distance(half)
            lines += [
                f"| {kind}, {context}, float16 | {half.perplexity:.3f} | - | - | - |",
                f"| {kind}, {context}, int8 | {said.perplexity:.3f} | {ratio:.4f} | {off:.4f} | "
                f"{said.agreement(half):.1%} |",
            ]
    return "\n".join(lines)


COLUMNS = (
    "",
    "perplexity",
    "to fp32",
    "logprobs off fp32",
    "greedy tokens as fp32",
    "perplexity to bitsandbytes' own",
    "logprobs off its",
    "greedy tokens as its",
)


def _line(name: str, said: Said, plain: Said, own: Said | None) -> str:
    cells = [name, f"{said.perplexity:.3f}"]
    for other in (plain, own):
        if other is None or other is said:
            cells += ["-"] * 3
        else:
            ratio, off = said.against(other), said.distance(other)
            cells += [f"{ratio:.4f}", f"{off:.4f}", f"{said.agreement(other):.1%}"]
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str]) -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    home = platformdirs.user_data_path("lorry", appauthor=False)
    folder = Path(arguments[0]) if arguments else default_base(home)
    sys.stdout.write(table(folder) + "\n\n" + table_of_caches(folder) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1:])
