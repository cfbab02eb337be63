"""The Tab key, as bash asks for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from api.live import Live

PROGRAM = "import sys; from lorry.cli import main; sys.exit(main([]))"


def offered(*words: str, **environment: str) -> list[str]:
    """What follows `lorry WORDS`; the last word is begun."""
    asked = {
        "COMP_WORDS": " ".join(("lorry", *words)),
        "COMP_CWORD": str(len(words)),
        "_LORRY_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **asked, **environment},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_and_flags() -> None:
    assert offered("adapters", "pu") == ["push", "pull"]
    assert offered("serve", "--watch-r") == ["--watch-removed"]


@pytest.mark.parametrize("command", ["rm", "show", "promote"])
def test_names_are_the_servers(live: Live, command: str) -> None:
    assert offered("adapters", command, "pi", LORRY_URL=live.url) == ["pirate"]
    assert offered("adapters", command, "x", LORRY_URL=live.url) == []


def test_the_flag_wins(live: Live) -> None:
    words = ("adapters", "show", "--url", live.url, "le")
    assert offered(*words, LORRY_URL="http://127.0.0.1:9") == ["legal"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense://", "http://[", ""])
def test_no_server_offers_nothing(url: str) -> None:
    assert offered("adapters", "rm", "", LORRY_URL=url) == []
