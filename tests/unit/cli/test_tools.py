"""`lorry adapters` inspect, merge, bake and convert: as a user types them, no server about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorry.cli import main, merge_command
from lorry_adapters.lora.merge import METHODS
from support.peft_adapters import edit_config
from support.peft_kinds import KINDS
from support.peft_made import load_base, make
from support.peft_oracle import peft_logprobs

IDS = [1, 40, 77, 9, 200, 31]


def test_inspect_measures_every_module(tool, peft_adapter, tiny_model, tmp_path: Path) -> None:
    folder, base = peft_adapter("llama", "plain"), tiny_model("llama")
    plain = tool("inspect", folder)
    assert len(plain["modules"]) == 14
    assert all(one["norm"] > 0 and one["relative"] is None for one in plain["modules"])
    measured = tool("inspect", folder, "--base", base, "--plot", tmp_path / "a.svg")
    assert all(0.01 < one["relative"] < 10 for one in measured["modules"])
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_inspect_measures_other_kinds_against_the_base(tool, tiny_model, tmp_path: Path) -> None:
    base = tiny_model("llama")
    make(KINDS["ia3, feedforward"], "llama", load_base(base), tmp_path)
    assert "name it with --base" in tool("inspect", tmp_path, code=1)
    measured = tool("inspect", tmp_path, "--base", base)
    assert measured["not_measured"] == []
    assert all(one["relative"] > 0.01 for one in measured["modules"])


def test_inspect_shows_people_a_table(peft_adapter, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapters", "inspect", str(peft_adapter("llama", "plain"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["layer", "mlp.down_proj"]
    assert [line.split()[0] for line in lines[3:5]] == ["0", "1"]


def test_a_picture_is_svg_or_refused(tool, peft_adapter, tmp_path: Path) -> None:
    line = tool("inspect", peft_adapter("llama", "plain"), "--plot", tmp_path / "a.png", code=2)
    assert "a.svg" in line
    line = tool("inspect", peft_adapter("llama", "plain"), "--plot", "/nowhere/a.svg", code=1)
    assert "/nowhere/a.svg" in line


def test_a_merge_does_what_both_do(tool, peft_adapter, tiny_model, tmp_path: Path) -> None:
    """Through the files alone, for an adapter in an archive too."""
    first, second = peft_adapter("llama", "plain"), peft_adapter("llama", "small")
    archive = shutil.make_archive(str(tmp_path / "second"), "zip", second)
    out = tmp_path / "out"
    answer = tool("merge", f"{first}:0.7", f"{archive}:-0.3", "--method", "cat", "--out", out)
    assert answer["rank"] == 12
    base = tiny_model("llama")
    expected = peft_logprobs(base, [(first, 0.7), (second, -0.3)], IDS)
    found = peft_logprobs(base, [(out, 1.0)], IDS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert tool("check", out, "--base", base)["ok"] is True


def test_merging_takes_pefts_parameters(tool, peft_adapter, tmp_path: Path) -> None:
    parts = [f"{peft_adapter('llama', 'plain', seed=seed)}:0.5" for seed in (0, 1)]
    given = ["--density", "0.5", "--majority-sign-method", "frequency", "--rank", "3", "--seed", 1]
    answer = tool("merge", *parts, "--method", "dare_ties_svd", *given, "--out", tmp_path / "out")
    assert answer["rank"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{a}", "{b}:1"], 2, "no weight"),
        (["{a}:1x", "{b}:1"], 2, "'1x' is no number"),
        (["{a}:x", "{b}:1"], 2, "no weight"),
        (["{a}:nan", "{b}:1"], 2, "finite"),
        (["{a}:1"], 1, "from 2"),
        (["{a}:1", "{b}:1", "--method", "average"], 1, "average"),
        (["{a}:1", "{b}:1", "--method", "ties"], 1, "density"),
        (["{a}:1", "./nothing:1"], 1, "./nothing does not exist"),
        (["{a}:1", "nobody:1", "--url", "http://127.0.0.1:9"], 1, "nobody is no folder"),
        (["{a}:1", "{small}:1", "--method", "linear"], 1, "one rank"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistaken_merge_is_one_line(
    arguments, code: int, said: str, tool, peft_adapter, tmp_path: Path
) -> None:
    names = {
        "a": peft_adapter("llama", "plain"),
        "b": peft_adapter("llama", "plain", seed=1),
        "small": peft_adapter("llama", "small"),
    }
    words = [word.format(**names) for word in arguments]
    assert said in tool("merge", *words, "--out", tmp_path / "out", code=code)
    assert not (tmp_path / "out").exists()


def test_the_help_lists_every_method() -> None:
    """The command repeats them, so that it starts without torch."""
    assert set(merge_command.METHODS.split(", ")) == set(METHODS)


def test_an_existing_folder_is_left_alone(tool, peft_adapter, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    parts = [f"{peft_adapter('llama', 'plain', seed=seed)}:0.5" for seed in (0, 1)]
    assert "not an empty folder" in tool("merge", *parts, "--out", tmp_path, code=1)
    assert [item.name for item in tmp_path.iterdir()] == ["mine"]


def test_a_baked_model_is_base_and_adapter(tool, peft_adapter, tiny_model, tmp_path: Path) -> None:
    folder, base, out = peft_adapter("llama", "rslora"), tiny_model("llama"), tmp_path / "out"
    answer = tool("bake", f"{folder}:0.5", "--base", base, "--dtype", "float32", "--out", out)
    assert answer["modules"] == 14
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        found = torch.log_softmax(model(torch.tensor([IDS])).logits[0], dim=-1)
    expected = peft_logprobs(base, [(folder, 0.5)], IDS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_config_with_the_mark_of_windows_is_read_by_every_command(
    tool, copied, peft_adapter, tiny_model, tmp_path: Path
) -> None:
    folder, base = copied(peft_adapter("llama", "plain")), tiny_model("llama")
    config = folder / "adapter_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert tool("check", folder, "--base", base)["ok"] is True
    assert len(tool("inspect", folder)["modules"]) == 14
    assert tool("merge", f"{folder}:1", f"{folder}:1", "--method", "cat", "--out", tmp_path / "m")
    assert tool("bake", folder, "--base", base, "--out", tmp_path / "baked")["modules"] == 14
    tool("convert", folder, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out/adapter_config.json").read_text("utf-8"))["r"] == 8
    config.write_bytes(config.read_bytes().decode("utf-8-sig").encode("utf-16"))
    assert "adapter_config.json is UTF-16 text" in tool("inspect", folder, code=1)


def test_a_mistaken_bake_is_one_line(tool, peft_adapter, tiny_model, tmp_path: Path) -> None:
    folder, out = peft_adapter("llama", "plain"), tmp_path / "out"
    assert "float16" in tool("bake", folder, "--dtype", "float16", "--out", out, code=2)
    other = tool("bake", folder, "--base", tiny_model("gpt2"), "--out", out, code=1)
    assert "PEFT cannot load it" in other
    assert not out.exists()


def test_what_is_not_pefts_is_named_and_mlx_is_converted(tool, tmp_path: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    shapes = {"lora_a": (64, 4), "lora_b": (4, 64)}
    name = "model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.{part}": torch.ones(*shape) for part, shape in shapes.items()}
    save_file(tensors, found / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.0}}
    (found / "adapter_config.json").write_text(json.dumps(config))
    assert "is MLX-LM's; lorry adapters convert FOLDER" in tool("check", found, code=1)
    answer = tool("convert", found, "--out", tmp_path / "out")
    assert answer["changes"] == ["it was MLX-LM's: matrices turned, scale as alpha"]
    assert (tmp_path / "out/adapter_model.safetensors").exists()


def test_convert_says_what_it_changed(tool, peft_adapter, copied, tmp_path: Path) -> None:
    good = peft_adapter("llama", "plain")
    found = copied(good)
    file = found / "adapter_model.safetensors"
    tensors = {k.removeprefix("base_model.model."): v for k, v in load_file(file).items()}
    save_file(tensors, file)
    edit_config(found, merge_weights=False, enable_lora=None)
    answer = tool("convert", found, "--out", tmp_path / "out")
    assert len(answer["changes"]) == 3
    assert (
        load_file(tmp_path / "out/adapter_model.safetensors").keys()
        == load_file(good / "adapter_model.safetensors").keys()
    )


def test_pissa_without_its_start_says_what_is_needed(
    tool, peft_adapter, copied, tmp_path: Path
) -> None:
    found = copied(peft_adapter("llama", "plain"))
    edit_config(found, init_lora_weights="pissa")
    assert "--initial" in tool("convert", found, "--out", tmp_path / "out", code=1)
    start = peft_adapter("llama", "plain", seed=1)
    tool("convert", found, "--initial", start, "--out", tmp_path / "out")
    assert len(load_file(tmp_path / "out/adapter_model.safetensors")) == 28


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_a_pickle_is_never_opened(
    whole: bool, tool, peft_adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(peft_adapter("llama", "plain") / "adapter_config.json", folder)
    (folder / "adapter_model.bin").write_bytes(b"not even a pickle")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    path = folder if whole else folder / "adapter_model.bin"
    line = tool("convert", path, "--out", tmp_path / "out", code=1)
    assert "torch.load('adapter_model.bin'" in line and "safetensors" in line
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_named(tool, tmp_path: Path) -> None:
    assert "gone" in tool("convert", tmp_path / "gone", "--out", tmp_path / "out", code=1)
