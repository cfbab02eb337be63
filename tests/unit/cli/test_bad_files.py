"""Files that are no adapter: every tool says so in one line, and none makes anything of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorry.cli import main
from support.bad_uploads import bad_uploads


@pytest.fixture(scope="module")
def uploads(peft_adapter):
    return bad_uploads(peft_adapter("llama", "plain"), max_rank=64)


NAMES = [
    "not an archive", "nothing at all", "truncated zip", "truncated tar", "climbs out",
    "absolute path", "symbolic link", "two configs", "no config", "no weights", "pickle only",
    "config is no JSON", "config is a list", "header length lies", "header is no JSON",
    "header points beyond the end", "header overlaps itself", "header has a strange dtype",
    "weights truncated", "wrong shape", "not a number", "integers", "an A without its B",
    "rank not the tensors'", "rank is text", "DoRA", "another method", "matches no module",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", ["check", "inspect", "merge", "convert"])
def test_no_file_is_a_traceback(
    command: str, name: str, uploads, tiny_model, tmp_path: Path, capsys
) -> None:
    bad = uploads[name]
    file = tmp_path / bad.filename
    file.write_bytes(bad.content)
    given = {
        "check": [str(file), "--base", str(tiny_model("llama"))],
        "inspect": [str(file)],
        "merge": [f"{file}:1", f"{file}:1", "--out", str(tmp_path / "out")],
        "convert": [str(file), "--out", str(tmp_path / "out")],
    }
    code = main(["adapters", command, *given[command], "--json"])
    captured = capsys.readouterr()
    assert code in (0, 1)
    assert captured.err.count("\n") == code
    # What is wrong with the archive, or with the header, is wrong for every tool.
    if bad.status == 415 or command == "check":
        assert code == 1
    assert (tmp_path / "out").exists() == (code == 0 and command in ("merge", "convert"))
