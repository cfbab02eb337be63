"""Heads of adapters' own in 8 bits: packed, multiplied in the step, and what the bits cost."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lorry.model.compiled.own_head import HeadArrays, HeadRun, pack_own_head
from lorry.model.compiled.packer import Packer
from lorry.model.guard import Unsafe
from lorry_adapters.lora import weights
from lorry_adapters.lora.matrix_deltas import OwnLinear
from support.compiled import CompiledDriver, forbid_packed, in_codes
from support.executor_driver import Ask, ExecutorDriver, token_ids
from support.peft_kinds import KINDS
from support.peft_made import make
from support.prompts import random_prompt
from support.rounded import rounded
from support.tokenizer import VOCAB_SIZE

TOLERANCE = 0.03
"""Of a log-probability: `test_step.py`'s, which has the same product in the base's head."""
FEWER = VOCAB_SIZE - 20


def own(weight_OI: Tensor, bias_O: Tensor | None = None) -> OwnLinear:
    return OwnLinear(weight_OI, bias_O, torch.float32, torch.device("cpu"))


def dense(weight_OI: Tensor) -> Tensor:
    """With 8 bits, row by row."""
    scale_O1 = weight_OI.abs().amax(1, keepdim=True) / 127
    return (weight_OI / scale_O1).round() * scale_O1


@pytest.mark.parametrize("words", [16, 21, 4096 + 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_packed_as_the_bases_head(built: ctypes.CDLL, words: int, dtype: torch.dtype) -> None:
    dice = torch.Generator().manual_seed(words)
    weight_OI = torch.randn(words, 32, generator=dice).to(dtype)
    bias_O = torch.randn(words, generator=dice)
    head = pack_own_head(built, own(weight_OI, bias_O), 32, 5000)
    with closing(Packer(built, 1)) as packer:
        codes_OI, scale_O = packer.quantized(weight_OI.float().contiguous())
        expected = packer.int8(codes_OI, scale_O, bias_O, is_head=True)
    for name, tensor in expected.tensors().items():
        assert torch.equal(head.packed.tensors()[name], tensor), name
    assert head.packed.sum_O is not None and expected.sum_O is not None
    assert torch.equal(head.packed.sum_O, expected.sum_O)
    assert (head.words, head.nbytes) == (words, head.packed.nbytes)


def test_what_eight_bits_cost(built: ctypes.CDLL) -> None:
    """Logits of a spread of 3, as a base's: log-probabilities are off by 0.02 in the mean. On 1000
    tokens of the default base it is 0.033, and the perplexity goes up by 0.2 %."""
    dice = torch.Generator().manual_seed(1)
    weight_VH = torch.randn(2000, 256, generator=dice)
    hidden_TH = torch.randn(50, 256, generator=dice) * 3 / 16
    tensors = pack_own_head(built, own(weight_VH), 256, 2000).packed.tensors()
    held_VH = (tensors["codes"] * tensors["scale"][:, None]).float()
    exact_TV = (hidden_TH @ weight_VH.T).log_softmax(1)
    found_TV = (hidden_TH @ held_VH.T).log_softmax(1)
    assert float((found_TV - exact_TV).abs().mean()) < 0.025
    assert float((exact_TV.exp() * (exact_TV - found_TV)).sum(1).mean()) < 0.001


@pytest.mark.parametrize("shape", [(48, 16), (17, 32), (64, 32)], ids=str)
def test_a_head_of_another_size_is_refused(built: ctypes.CDLL, shape: tuple[int, int]) -> None:
    with pytest.raises(Unsafe, match=f"a head of {shape[0]} x {shape[1]}, not of 16 x 32"):
        pack_own_head(built, own(torch.ones(shape)), 32, 16)


def test_runs_lie_within_the_step(built: ctypes.CDLL) -> None:
    head = pack_own_head(built, own(torch.ones(16, 32)), 32, 16)
    assert HeadArrays([HeadRun(head, 0, 2)], 2).replace_all
    assert not HeadArrays([HeadRun(head, 1, 2)], 2).replace_all
    for first, last in ((-1, 1), (1, 1), (1, 3)):
        with pytest.raises(Unsafe, match="heads of"):
            HeadArrays([HeadRun(head, first, last)], 2)


# ---- in a step


class Ground:
    """Adapters with heads of their own, the same with these heads in 8 bits, and a plain one."""

    def __init__(self, base: Path, root: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(base)
        self.heads = [root / str(seed) for seed in range(3)]
        for seed, folder in enumerate(self.heads):
            make(KINDS["modules_to_save=head"], "llama", model, folder, seed=seed)
        self._cut(self.heads[2])
        self.plain = make(KINDS["lora"], "llama", model, root / "plain").folder

    def asks(self, heads: Sequence[Path]) -> list[Ask]:
        wishes = [
            [],
            *([(head, scale)] for head in heads for scale in (1.0, 0.5)),
            [(self.plain, 1.0)],
            [(heads[0], 1.0)],
        ]
        return [Ask(wish, _prompt(5 + 3 * at, at)) for at, wish in enumerate(wishes)]

    def rounded(self, root: Path, driver: ExecutorDriver) -> list[Ask]:
        """What `asks` are to the packed model."""
        same = {head: self._rounded(head, root / head.name, driver) for head in self.heads}
        same[self.plain] = rounded(self.plain, root / "plain", driver.loaded.layout)
        return [
            Ask([(same[folder], scale) for folder, scale in ask.adapters], ask.token_ids)
            for ask in self.asks(self.heads)
        ]

    def _rounded(self, folder: Path, target: Path, driver: ExecutorDriver) -> Path:
        """Its pairs and its head."""
        rounded(folder, target, driver.loaded.layout)
        path = target / weights.WEIGHTS_FILE
        tensors = load_file(path)
        (key,) = (key for key in tensors if "lm_head" in key)
        save_file({**tensors, key: dense(tensors[key])}, path)
        return target

    def _cut(self, folder: Path) -> None:
        path = folder / weights.WEIGHTS_FILE
        tensors = load_file(path)
        (key,) = (key for key in tensors if "lm_head" in key)
        save_file({**tensors, key: tensors[key][:FEWER].clone()}, path)


def _prompt(length: int, seed: int) -> list[int]:
    """Of words that all heads know."""
    return [token % FEWER for token in random_prompt(length, seed)]


@pytest.fixture(scope="module")
def ground(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tiny_model("llama"), tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def driver(built: ctypes.CDLL, tiny_model: Callable[[str], Path]) -> Iterator[CompiledDriver]:
    with in_codes():
        made = CompiledDriver(tiny_model("llama"), built, num_threads=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def generic(tiny_model: Callable[[str], Path]) -> ExecutorDriver:
    return ExecutorDriver(tiny_model("llama"), quantization="int8")


def test_the_packed_model_says_the_same(
    ground: Ground,
    driver: CompiledDriver,
    generic: ExecutorDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forbid_packed(monkeypatch, generic.executor.paths.general)
    generic.forget_slots()
    asks, theirs = ground.asks(ground.heads), ground.rounded(tmp_path, generic)
    for chunk in (None, 3):
        mine = driver.score(asks, chunk=chunk)
        for want, have in zip(generic.score(theirs), mine, strict=True):
            assert max(abs(w - h) for w, h in zip(want, have, strict=True)) < TOLERANCE


def test_a_rows_bits_do_not_depend_on_its_company(ground: Ground, driver: CompiledDriver) -> None:
    """Alone all heads of a step are its own; among others the base's is multiplied, too."""
    asks = ground.asks(ground.heads)
    alone = [driver.score([ask])[0] for ask in asks]
    for chunk in (None, 3):
        assert driver.score(asks, chunk=chunk) == alone
        assert driver.score(asks[::-1], chunk=chunk)[::-1] == alone
    drawn = [token_ids(driver.greedy([ask], 6)[0]) for ask in asks]
    assert [token_ids(one) for one in driver.greedy(asks, 6, chunk=7)] == drawn


def test_words_that_it_lacks_are_never_drawn(ground: Ground, driver: CompiledDriver) -> None:
    asks = [ask for ask in ground.asks(ground.heads) if ask.adapters]
    for ask in asks:
        cut = ask.adapters[0][0] == ground.heads[2]
        (answer,) = driver.greedy([ask], 4, top=VOCAB_SIZE)
        for result in answer:
            for token in result.drawn:
                unknown = [top.logprob for top in token.top if top.token_id >= FEWER]
                assert len(unknown) == VOCAB_SIZE - FEWER
                assert all(logprob < -1e29 for logprob in unknown) is cut


def test_a_slot_forgets_its_head(ground: Ground, driver: CompiledDriver) -> None:
    slot = driver.slot_of(ground.plain)
    ask = Ask([(ground.plain, 1.0)], _prompt(9, 52))
    before, nbytes = driver.score([ask]), driver.model.slot_bytes
    for head in ground.heads:
        driver.place(slot, head)
        assert driver.model.slot_bytes > nbytes + FEWER * 32
        assert driver.score([Ask([(head, 1.0)], ask.token_ids)]) != before
        driver.place(slot, ground.plain)
        assert driver.score([ask]) == before
        assert driver.model.slot_bytes == nbytes
