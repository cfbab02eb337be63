"""`lorry adapters check`: the upload's verification with no server and no weights of the base."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorry.cli import main, offline, transfer
from lorry.model.layout import layout_of
from lorry.settings import Settings
from lorry_adapters.lora import weights
from support.peft_adapters import edit_config

BOTTLENECKS = Path(__file__).parents[2] / "oracle" / "adapterhub"


@pytest.fixture
def broken(peft_adapter, tmp_path: Path) -> Path:
    """Two things wrong: a shape, and a NaN in another tensor."""
    folder = tmp_path / "broken"
    shutil.copytree(peft_adapter("llama", "plain"), folder)
    file = folder / transfer.WEIGHTS_FILE
    tensors = load_file(file)
    first, second, *_ = sorted(tensors)
    tensors[first] = torch.ones(3, 5)
    tensors[second][0, 0] = float("nan")
    save_file(tensors, file)
    return folder


def test_a_good_folder_fits(peft_adapter, tiny_model, capsys: pytest.CaptureFixture[str]) -> None:
    folder = peft_adapter("llama", "plain")
    base = tiny_model("llama")
    assert main(["adapters", "check", str(folder), "--base", str(base), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert answer["rank"] >= 1
    assert main(["adapters", "check", str(folder), "--base", str(base)]) == 0
    assert "fits" in capsys.readouterr().out


def test_it_says_what_it_is(peft_adapter, tiny_model, capsys: pytest.CaptureFixture[str]) -> None:
    folder, base = peft_adapter("llama", "both_patterns_rslora"), str(tiny_model("llama"))
    assert main(["adapters", "check", str(folder), "--base", base, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    tensors = load_file(folder / transfer.WEIGHTS_FILE)
    assert (answer["method"], answer["task"], answer["acts"]) == ("LoRA", "CAUSAL_LM", True)
    assert answer["kinds"] == ["rsLoRA", "rank_pattern", "alpha_pattern"]
    assert answer["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert answer["share"] == answer["parameters"] / answer["base_parameters"]
    assert {one["rank"] for one in answer["modules"]} == {8, 16}
    assert len(answer["modules"]) == len(tensors) / 2
    assert main(["adapters", "check", str(folder), "--base", base]) == 0
    text = capsys.readouterr().out
    assert "% of the base" in text
    rows = [line.split() for line in text.splitlines() if "self_attn.q_proj" in line]
    assert [row[:4] for row in rows] == [["self_attn.q_proj", "lora", "2", "8"]]


def test_an_adapter_that_does_nothing_is_a_problem(
    peft_adapter, tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "idle"
    shutil.copytree(peft_adapter("llama", "plain"), folder)
    file = folder / transfer.WEIGHTS_FILE
    save_file({key: value * ("lora_A" in key) for key, value in load_file(file).items()}, file)
    base = str(tiny_model("llama"))
    assert main(["adapters", "check", str(folder), "--base", base, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["acts"] is False
    assert len(answer["problems"]) == 1


def test_what_is_too_large_names_the_setting_that_check_reads(
    peft_adapter, tiny_model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` has no --max-upload; the variable reaches it as it reaches `serve`."""
    given = ["adapters", "check", str(peft_adapter("llama", "plain"))]
    given += ["--base", str(tiny_model("llama"))]
    monkeypatch.setenv("LORRY_MAX_UPLOAD", "20KiB")
    assert main(given) == 1
    said = capsys.readouterr()
    assert "larger than 20480 bytes" in said.out + said.err
    assert "LORRY_MAX_UPLOAD" in said.out + said.err
    monkeypatch.setenv("LORRY_MAX_UPLOAD", "1GiB")
    assert main(given) == 0


def test_an_archive_is_checked_like_its_folder(
    peft_adapter, tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "adapter.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(peft_adapter("llama", "plain"), "adapter")
    assert main(["adapters", "check", str(archive), "--base", str(tiny_model("llama"))]) == 0


def test_every_problem_is_listed(
    broken: Path, tiny_model, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tiny_model("llama"))
    assert main(["adapters", "check", str(broken), "--base", base, "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len(problems) >= 2
    assert main(["adapters", "check", str(broken), "--base", base]) == 1
    captured = capsys.readouterr()
    listed = [line for line in captured.out.splitlines() if line.startswith("- ")]
    assert listed == [f"- {problem}" for problem in problems]
    assert captured.err.count("\n") == 1


def test_a_problem_says_what_to_do(
    peft_adapter, tiny_model, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(peft_adapter("llama", "plain")), "--base", str(tiny_model("llama"))]
    assert main(["adapters", "check", *given, "--max-lora-rank", "4"]) == 1
    assert "--max-lora-rank 8 (LORRY_MAX_LORA_RANK) allows it" in capsys.readouterr().out


def test_another_base_is_a_problem_not_a_crash(
    peft_adapter, tiny_model, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = peft_adapter("llama", "plain")
    assert main(["adapters", "check", str(folder), "--base", str(tiny_model("gpt2"))]) == 1
    assert "does not fit" in capsys.readouterr().err


def test_adapterhubs_folder(tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "houlsby"
    shutil.copytree(BOTTLENECKS / "gpt2-houlsby", folder)
    command = ["adapters", "check", str(folder), "--base", str(tiny_model("gpt2"))]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["method"], answer["acts"]) == ("AdapterHub bottleneck", True)
    assert answer["target_modules"] == ["c_proj"]
    assert {one["module"] for one in answer["modules"]} == {"transformer.h.0", "transformer.h.1"}
    (folder / "model_head.safetensors").touch()
    assert main(command) == 1
    assert "with_head=False" in capsys.readouterr().err
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")
    assert main(command) == 1
    assert "torch.load('pytorch_adapter.bin'" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_layout_without_weights_is_the_loaded_models(tiny_model, family: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_model(family)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    expected = layout_of(loaded, folder.name)
    outline = offline.outline(Settings(model=str(folder)))
    assert outline.layout == expected
    assert outline.parameters == sum(one.numel() for one in loaded.parameters())


def test_file_names_are_the_adapters_own() -> None:
    """The client repeats these constants, so that it starts without torch."""
    assert transfer.CONFIG_FILE == weights.CONFIG_FILE
    assert transfer.WEIGHTS_FILE == weights.WEIGHTS_FILE
    assert transfer.HUB_FILE == weights.HUB_FILE


def test_it_says_how_many_tokens_an_adapter_knows(
    peft_adapter, tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(peft_adapter("llama", "plain"), folder)
    edit_config(folder, modules_to_save=["embed_tokens"])
    file = folder / transfer.WEIGHTS_FILE
    table = {"base_model.model.model.embed_tokens.weight": torch.randn(380, 64)}
    save_file({**load_file(file), **table}, file)
    arguments = ["adapters", "check", str(folder), "--base", str(tiny_model("llama"))]
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["tokens"], answer["base_tokens"]) == (380, 384)
    assert main(arguments) == 0
    assert "380 of the base's 384 tokens; it never answers the others" in capsys.readouterr().out
    whole = ["adapters", "check", str(peft_adapter("llama", "plain")), *arguments[3:]]
    assert main(whole) == 0
    assert "knows" not in capsys.readouterr().out
