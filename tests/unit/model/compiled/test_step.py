"""The compiled step against transformers' own layers, and against itself in other company."""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorry.core import Batch, Row, RowResult
from lorry.model.compiled.compiled_linear import CompiledLinear
from lorry.model.compiled.model_structs import bare
from lorry.model.guard import Unsafe
from lorry.model.memory import digest_of_base
from support import tiny
from support.compiled import CompiledDriver, in_codes, runnable
from support.compiled import compiled as compiled_library
from support.executor_driver import Ask, ExecutorDriver, drawn, load_tiny, token_ids, tops
from support.half_cache import HalfCache
from support.peft_oracle import Adapters
from support.plain_product import RoundedDriver, round_as_compiled
from support.rounded import rounded
from support.tokenizer import VOCAB_SIZE, build_tokenizer

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3", "gpt2", "cohere")
VARIANTS = ("plain", "odd_rank", "head", "attention_only", "large", "rank_one", "regex")

TOLERANCE = 0.05
"""Of a log-probability, where the least likely has -18, between paths that round activations to 13
bits: a difference in a sum's last digit can flip a code, and the compiled one rounds those of an
adapter's inside, too: 0.013 seen, 0.0075 without adapters. A wrong position, scale or slot moves
them by more than 1."""

FLIPPED, FLIPPED_MEAN = 0.5, 0.05
"""The same where both round the base's activations to 8 bits in chunks, of the largest difference
and of the mean: 0.32 and 0.034 seen, as an adapter's 13 bits move some numbers to the next code.
Without adapters 0.12 and 0.016, and 0.0005 where none is moved."""

Driver = Callable[..., Any]


@pytest.fixture
def compiled(
    built: ctypes.CDLL, tiny_model: Callable[[str], Path], request: pytest.FixtureRequest
) -> Driver:
    def make(family: str | Path, **options: Any) -> CompiledDriver:
        folder = tiny_model(family) if isinstance(family, str) else family
        driver = CompiledDriver(folder, built, **options)
        request.addfinalizer(driver.close)
        return driver

    return make


@pytest.fixture(scope="module")
def generic(tiny_model: Callable[[str], Path]) -> Callable[[str, bool], ExecutorDriver]:
    made: dict[tuple[str, bool], ExecutorDriver] = {}

    def driver(family: str, chunks: bool) -> ExecutorDriver:
        if (family, chunks) not in made:
            kind = RoundedDriver if chunks else ExecutorDriver
            made[family, chunks] = kind(tiny_model(family), quantization="int8")
        return made[family, chunks]

    return driver


def prompt(length: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(3, VOCAB_SIZE) for _ in range(length)]


def asks(adapters: Sequence[Path]) -> list[Ask]:
    """One of everything: the base, each adapter, several at once, scales, two rows alike."""
    wishes: list[Adapters] = [(), (), *(((path, 1.0),) for path in adapters)]
    wishes += [
        ((adapters[0], 0.5), (adapters[1], 1.5)),
        ((adapters[4], -0.7), (adapters[2], 0.3), (adapters[0], 1.0)),
        ((adapters[0], 2.0),),
    ]
    lengths = (1, 40, 2, 17, 8, 9, 33, 3, 5, 16, 24, 7)
    return [
        Ask(wish, prompt(length, seed))
        for seed, (wish, length) in enumerate(zip(wishes, lengths, strict=True))
    ]


def worst(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    assert pairs and all(math.isfinite(a) for a, _ in pairs)
    return max(abs(a - b) for a, b in pairs)


def alternatives(results: Sequence[RowResult]) -> list[Any]:
    return [[(top.token_id, top.logprob) for top in likeliest] for likeliest in tops(results)]


def check_flipped(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> None:
    assert worst(ours, theirs) < FLIPPED
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    assert fmean(abs(a - b) for a, b in pairs) < FLIPPED_MEAN


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunks", [False, True], ids=["codes", "chunks"])
def test_the_generic_path_says_the_same(
    chunks: bool,
    family: str,
    compiled: Driver,
    generic: Callable[[str, bool], ExecutorDriver],
    peft_adapter: Driver,
    tmp_path: Path,
) -> None:
    with nullcontext() if chunks else in_codes():
        ours = compiled(family)
    theirs = generic(family, chunks)

    def check(mine: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]]) -> None:
        if chunks:
            check_flipped(mine, wanted)
        else:
            assert worst(mine, wanted) < TOLERANCE

    held = [peft_adapter(family, variant, seed=i) for i, variant in enumerate(VARIANTS)]
    wanted = asks(held)
    # In 8 bits for the other one, too: what that costs is test_adapter.py's.
    same = asks([rounded(path, tmp_path / path.name, ours.loaded.layout) for path in held])
    # The driver serves every instruction set, each with files of its own.
    theirs.forget_slots()
    for chunk in (None, 7):
        check(ours.score(wanted, chunk=chunk), theirs.score(same, chunk=chunk))
    # Prompts in chunks, rows that decode beside others that prefill, blocks out of order; then
    # the generic path reads what the other one wrote.
    answers = ours.greedy(wanted, 12, chunk=5)
    read = [
        Ask(ask.adapters, [*ask.token_ids, *token_ids(answer)])
        for ask, answer in zip(same, answers, strict=True)
    ]
    theirs_logprobs = [scores[-12:] for scores in theirs.score(read)]
    check([[t.logprob for t in drawn(a)] for a in answers], theirs_logprobs)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_the_same_bits_in_any_company(
    family: str, compiled: Driver, peft_adapter: Driver
) -> None:
    driver = compiled(family)
    wanted = asks([peft_adapter(family, variant, seed=i) for i, variant in enumerate(VARIANTS)])
    alone = [driver.score([ask])[0] for ask in wanted]
    for chunk in (None, 1, 3, 7):
        assert driver.score(wanted, chunk=chunk) == alone, chunk
    assert driver.score(list(reversed(wanted))) == list(reversed(alone))
    answers = [driver.greedy([ask], 8, top=20)[0] for ask in wanted]
    for chunk in (None, 4):
        together = driver.greedy(wanted, 8, chunk=chunk, top=20)
        assert [alternatives(a) for a in together] == [alternatives(a) for a in answers]


@pytest.mark.parametrize("variant", ["plain", "odd_rank", "head", "large"])
def test_an_adapters_tokens_do_not_depend_on_how_many_share_it(
    variant: str, compiled: Driver, peft_adapter: Driver
) -> None:
    # Tokens of one adapter are taken four at a time and the rest one by one.
    driver = compiled("llama")
    adapter = peft_adapter("llama", variant)
    wanted = [Ask(((adapter, 1.0 + i / 8),), prompt(6, i)) for i in range(9)]
    alone = [driver.greedy([ask], 4, top=20)[0] for ask in wanted]
    for count in range(2, 10):
        together = driver.greedy(wanted[:count], 4, top=20)
        assert [alternatives(a) for a in together] == [alternatives(a) for a in alone[:count]]


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "olmo2", "gpt_neox", "gemma2_odd"])
def test_any_number_of_threads_gives_the_same_bits(
    family: str, compiled: Driver, peft_adapter: Driver
) -> None:
    wanted = asks([peft_adapter(family, variant, seed=i) for i, variant in enumerate(VARIANTS)])
    answers = []
    for num_threads in (1, 2, 3, 7, 32):
        driver = compiled(family, num_threads=num_threads)
        answers.append(
            (
                driver.score(wanted, chunk=6),
                [alternatives(a) for a in driver.greedy(wanted, 6, top=20)],
            )
        )
    assert all(answer == answers[0] for answer in answers[1:])


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_tiles_give_the_bits_of_avx512(
    family: str,
    tiny_model: Callable[[str], Path],
    peft_adapter: Driver,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if "avx512" not in (here := runnable()):
        pytest.skip("this processor has no AVX-512")
    wanted = asks([peft_adapter(family, variant, seed=i) for i, variant in enumerate(VARIANTS)])
    answers = []
    for name in (name for name in here if name.startswith(("amx", "avx512"))):
        driver = CompiledDriver(tiny_model(family), compiled_library(name, tmp_path))
        request.addfinalizer(driver.close)
        generated = [alternatives(answer) for answer in driver.greedy(wanted, 6, top=20)]
        answers.append((driver.score(wanted), driver.score(wanted, chunk=11), generated))
    assert len(answers) > 1 and all(answer == answers[0] for answer in answers[1:])


def test_the_base_is_never_touched(compiled: Driver, peft_adapter: Driver) -> None:
    driver = compiled("qwen2")  # with biases
    model = driver.loaded.model
    before = digest_of_base(model)
    adapters = [peft_adapter("qwen2", variant, seed=i) for i, variant in enumerate(VARIANTS)]
    first = driver.score(asks(adapters))
    assert digest_of_base(model) == before
    assert driver.score(asks(adapters)) == first
    driver.greedy(asks(adapters), 10)
    assert digest_of_base(model) == before


def test_the_weights_are_held_once(compiled: Driver) -> None:
    driver = compiled("qwen2")
    layer = driver.model._structs.model.layers[1]
    modules = dict(driver.loaded.model.named_modules())
    prefix = "model.layers.1."
    for struct, name in zip(layer.qkv, ("q_proj", "k_proj", "v_proj"), strict=True):
        linear = bare(modules[f"{prefix}self_attn.{name}"])
        assert isinstance(linear, CompiledLinear)
        assert struct.codes == linear.packed.codes.data_ptr()
    assert layer.down.codes == bare(modules[f"{prefix}mlp.down_proj"]).packed.codes.data_ptr()


# ---- models that the families above do not have


def save(folder: Path, family: str, **config: Any) -> Path:
    made = tiny.family(family).config()
    for name, value in config.items():
        setattr(made, name, value)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    tiny.fill(model, seed=3)
    model.eval().save_pretrained(folder)
    build_tokenizer(add_bos=False).save_pretrained(folder)
    return folder


def rope(kind: str, **more: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


LONG = {"factor": 8.0, "original_max_position_embeddings": 64}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "bias everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "a key head each": ("llama", {"num_key_value_heads": 4}),
    "one key head": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32}),
    "five to one, 80 wide": (
        "qwen3",
        {"num_attention_heads": 10, "num_key_value_heads": 2, "head_dim": 80},
    ),
    "window in one layer": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "rope llama3": (
        "llama",
        rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, **LONG),
    ),
    "rope yarn": ("llama", rope("yarn", **LONG)),
    "rope linear": ("llama", rope("linear", factor=4.0)),
    "odd widths": ("llama", {"hidden_size": 80, "intermediate_size": 208, "head_dim": 16}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_transformers_itself_says_the_same(
    name: str, built: ctypes.CDLL, compiled: Driver, tmp_path: Path
) -> None:
    family, config = OTHERS[name]
    folder = save(tmp_path, family, **config)
    ids = prompt(120, 1)
    model = load_tiny(folder, quantization="int8").model  # attention is still transformers' own

    def theirs(**more: Any) -> list[list[float]]:
        with torch.inference_mode():
            logprobs_TV = model(input_ids=torch.tensor([ids]), **more).logits[0].log_softmax(-1)
        return [[float(logprobs_TV[i, token]) for i, token in enumerate(ids[1:])]]

    with in_codes():
        ours = compiled(folder)
    assert worst(ours.score([Ask((), ids)], chunk=50), theirs()) < TOLERANCE
    round_as_compiled(model)
    check_flipped(
        compiled(folder).score([Ask((), ids)], chunk=50), theirs(past_key_values=HalfCache())
    )


def test_positions_are_what_the_frequencies_say(compiled: Driver, tmp_path: Path) -> None:
    # The kinds above must differ, or comparing each with transformers shows nothing.
    answers = [
        compiled(save(tmp_path / str(i), *OTHERS[name][:1], **OTHERS[name][1])).score(
            [Ask((), prompt(120, 1))]
        )
        for i, name in enumerate(("rope llama3", "rope yarn", "rope linear"))
    ]
    assert worst(answers[0], answers[1]) > 1 and worst(answers[1], answers[2]) > 1


# ---- what would write outside of its memory


def row(tokens: Sequence[int], *, start: int = 0, blocks: Sequence[int] | None = None) -> Batch:
    return Batch((Row("x", tokens, start, blocks or list(range(100)), (), None),))


@pytest.mark.parametrize(
    "batch",
    [
        row([5] * 65),
        row([VOCAB_SIZE]),
        row([-1]),
        row([5], blocks=[10**6]),
        row([5], start=5000, blocks=list(range(512)) * 2),
    ],
    ids=["tokens", "vocabulary", "negative", "block", "context"],
)
def test_a_step_beyond_its_bounds_does_not_begin(compiled: Driver, batch: Batch) -> None:
    driver = compiled("llama", max_tokens=64)
    with pytest.raises(Unsafe):
        driver.executor.run(batch)
    driver.executor.run(row([5] * 64))


def test_no_step_follows_the_end(compiled: Driver) -> None:
    driver = compiled("llama")
    driver.close()
    driver.close()
    with pytest.raises(Unsafe, match="closed"):
        driver.executor.run(row([5]))
