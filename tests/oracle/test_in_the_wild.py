"""Any adapter in the wild loads and is right, or is refused by name.

What old versions of PEFT wrote (`support/peft_history.py`), and what trainers, tools and people
leave in a config, in a file and in a folder (`support/wild.py`): uploaded over HTTP as it lies
there, and the answers equal to PEFT's of the plain form; or refused in the words that help.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from support import peft_history, tiny
from support.bad_uploads import CONFIG, WEIGHTS, zip_of
from support.left_folder import Left
from support.matrix_bench import Bench, bench
from support.peft_kinds import KINDS
from support.peft_made import Made
from support.wild import CASES

TOLERANCE = 1e-4
OF_TYPE = {
    "LORA": "lora",
    "ADALORA": "adalora",
    "IA3": "ia3, feedforward",
    "LOHA": "loha",
    "LOKR": "lokr",
    "VERA": "vera",
    "LN_TUNING": "ln_tuning",
    "TRAINABLE_TOKENS": "trainable_tokens",
    "PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix tuning",
    "CPT": "cpt",
}
"""A kind for each method whose fields' history is known."""


@pytest.fixture(scope="module")
def lorry(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("wild")
    with bench(tiny_model("llama"), "llama", home) as found:
        yield found


@pytest.fixture(scope="module")
def made(lorry: Bench) -> Callable[[str], Made]:
    known: dict[str, Made] = {}

    def of(kind: str) -> Made:
        if kind not in known:
            known[kind] = lorry.make(KINDS[kind], seed=5)
        return known[kind]

    return of


def check(lorry: Bench, upload: bytes, made: Made, says: str | None, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(upload)
    answer = lorry.live.upload("wild", tmp_path / "upload")
    if says is not None:
        assert answer.status_code in (415, 422), answer.text
        error = answer.json()["error"]
        told = [error["message"], *error.get("problems", ())]
        assert any(says in problem for problem in told), told
        return
    assert answer.status_code == 201, answer.text
    try:
        assert lorry.error(lorry.ask(("wild", 1.0)), made) < TOLERANCE
    finally:
        lorry.remove("wild")


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, lorry: Bench, made: Callable[[str], Made], tmp_path: Path) -> None:
    case = CASES[name]
    plain = made(case.kind)
    left = Left(
        config=json.loads((plain.folder / CONFIG).read_text()),
        tensors=load_file(plain.folder / WEIGHTS),
        base=lorry.base.state_dict(),
    )
    stored = {key: tensor.clone() for key, tensor in left.tensors.items()}
    case.change(left)
    rounded = {key: left.tensors.get(key, tensor).float() for key, tensor in stored.items()}
    if case.says is None and any(not torch.equal(stored[key], rounded[key]) for key in stored):
        plain = again(lorry, plain, rounded, tmp_path / "rounded")
    check(lorry, left.upload(), plain, case.says, tmp_path)


def again(lorry: Bench, made: Made, tensors: dict[str, torch.Tensor], folder: Path) -> Made:
    """PEFT's plain form of numbers that were rounded on the way."""
    folder.mkdir()
    (folder / CONFIG).write_text((made.folder / CONFIG).read_text())
    save_file(tensors, folder / WEIGHTS)
    model = PeftModel.from_pretrained(copy.deepcopy(lorry.base), folder).eval()
    return Made(folder, made.kind, model.requires_grad_(False))


@pytest.mark.parametrize(
    ("peft_type", "version"),
    [(name, version) for name in OF_TYPE for version in peft_history.versions(name)],
)
def test_every_version_of_peft(
    peft_type: str,
    version: str,
    lorry: Bench,
    made: Callable[[str], Made],
    tmp_path: Path,
) -> None:
    one = made(OF_TYPE[peft_type])
    config = json.loads((one.folder / CONFIG).read_text())
    written = peft_history.as_written(version, config)
    files = {
        CONFIG: json.dumps(written).encode(),
        WEIGHTS: (one.folder / WEIGHTS).read_bytes(),
    }
    check(lorry, zip_of(files), one, None, tmp_path)


def test_the_history_ends_with_this_peft() -> None:
    """A field of the PEFT that is installed and of no version here: add it."""
    for peft_type, kind in OF_TYPE.items():
        config = KINDS[kind].config(tiny.family("llama"))
        known = set(peft_history.as_written("99.0", {"peft_type": peft_type}))
        assert {field.name for field in dataclasses.fields(config)} == known, peft_type
