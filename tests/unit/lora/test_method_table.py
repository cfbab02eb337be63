"""A kind of adapter is declared once, in its own module; everything else asks the declaration."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lorry
import lorry_adapters
from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.config import parse_config
from lorry_adapters.lora.methods import method_table
from lorry_adapters.lora.methods.ia3 import read_ia3
from lorry_adapters.lora.methods.method import Gate, Method
from lorry_adapters.lora.methods.method_table import METHODS, REFUSED_METHODS, is_prefix
from lorry_adapters.lora.peft_folder import PeftFolder
from lorry_adapters.lora.weights import inspect, load
from lorry_adapters.tools.summary import summarize

ROOTS = [Path(package.__path__[0]) for package in (lorry_adapters, lorry)]
PAGE = Path(__file__).parents[3] / "docs" / "kinds.md"

ALLOWED = {
    # `methods/lora_method.py`, which declares the name, imports it.
    "lora/methods/initialisation.py": {"LORA"},
    # The load generator writes adapters as a client would, and imports nothing of the server.
    "bench/random_adapters.py": {"LORA"},
}


def named() -> Iterator[tuple[str, str]]:
    """Every string in the code that is the name of a method, and the file that it stands in."""
    names = {*METHODS, *REFUSED_METHODS}
    for root in ROOTS:
        for file in sorted(root.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and node.value in names:
                    yield file.relative_to(root).as_posix(), str(node.value)


def test_a_method_is_named_in_its_own_module_only() -> None:
    places: dict[str, set[str]] = {}
    for file, name in named():
        if name not in ALLOWED.get(file, ()):
            places.setdefault(name, set()).add(file)
    assert set(places) == {*METHODS, *REFUSED_METHODS}
    # What a method is called now stands where its former name is declared.
    places["MISS"].discard("lora/methods/refused.py")
    assert {name: files for name, files in places.items() if len(files) != 1} == {}
    assert all(file.startswith("lora/methods/") for (file,) in places.values())


def test_one_declaration_adds_a_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: BaseLayout
) -> None:
    config = {"peft_type": "TOY", "target_modules": ["q_proj"], "feedforward_modules": []}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    modules = [name for name in llama.modules if name.endswith("q_proj")]
    keys = [f"base_model.model.{name}.ia3_l" for name in modules]
    rows = llama.modules[modules[0]].out_features
    tensors = {key: torch.full((rows, 1), 2.0) for key in keys}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapter, match="peft_type 'TOY' are not served"):
        inspect(tmp_path, llama, 8)

    toy = Method("TOY", "Toy", read_ia3, ("ia3_",), Gate("ia3_l", idle=2.0), scalable=False)
    monkeypatch.setitem(method_table.METHODS, toy.name, toy)  # type: ignore[misc]
    facts = inspect(tmp_path, llama, 8)
    assert (facts.peft_type, facts.scalable) == ("TOY", False)
    assert set(load(tmp_path, "sha256:toy", llama).effects) == set(modules)
    with PeftFolder(tmp_path) as folder:
        found = summarize(folder)
    assert (found.method, found.acts, found.why) == ("Toy", False, "every ia3_l is 2")


def test_the_name_that_records_give_adapterhubs_format_is_no_peft_type() -> None:
    with pytest.raises(InvalidAdapter, match="peft_type 'BOTTLENECK' are not served; LORA"):
        parse_config(json.dumps({"peft_type": "BOTTLENECK"}).encode())


def test_which_virtual_tokens_are_keys_and_values() -> None:
    assert {name for name in METHODS if is_prefix(name)} == {"PREFIX_TUNING", "CARTRIDGE"}
    assert not is_prefix("A_METHOD_OF_A_LATER_RELEASE")


def test_the_documentation_names_every_kind() -> None:
    text = PAGE.read_text()
    assert [method.title for method in METHODS.values() if method.title not in text] == []
