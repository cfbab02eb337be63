"""Makes README's recording of a terminal: `make recording`.

It runs `SCENE` against a server that has the default base with its samples, and writes what the
commands said as an SVG in which the lines appear one after the other. It plays once and stays as it
ended; whoever asks for reduced motion sees the end at once. The times are made of the text, so the
same outputs give the same file. What the commands change is put back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from rich.cells import cell_len

from support.server import ROOT

FILE = ROOT / "docs" / "recording.svg"

_ASK = 'lorry ask "How do I cook rice?" --temperature 0'
SCENE = (
    "lorry adapters list",
    f"{_ASK} --max-tokens 32",
    f"{_ASK} --adapter pirate",
    "lorry adapters scale pirate 0.5",
    f"{_ASK} --adapter pirate",
    "lorry adapters disable pirate",
    f"{_ASK} --adapter pirate",
)
AFTERWARDS = ("lorry adapters enable pirate", "lorry adapters scale pirate 1")

COLUMNS = 110
_CELL, _LINE, _EDGE = 8, 19, 16  # px
_TYPED, _READ, _NEXT = 0.03, 1.4, 0.05  # seconds: a character, after an output, a line

# The window brings its own background, so it is readable on a dark page and on a light one.
_STYLE = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
rect { fill: #161b22; stroke: #57606a; }
text { fill: #d7dde4; white-space: pre; }
.typed { fill: #7ee787; animation: type steps(40) backwards; }
.said { animation: appear 10ms steps(1) backwards; }
@keyframes type { from { clip-path: inset(0 100% 0 0); } to { clip-path: inset(0 0 0 0); } }
@keyframes appear { from { opacity: 0; } to { opacity: 1; } }
@media (prefers-reduced-motion: reduce) { .typed, .said { animation: none; } }
"""


def drawn(turns: Sequence[tuple[str, str]]) -> str:
    """The SVG of commands and what each wrote."""
    texts: list[str] = []
    clock = 0.5
    for command, output in turns:
        typed = f"$ {command}"
        duration = _TYPED * len(typed)
        times = f"animation-duration:{duration:.2f}s;animation-delay:{clock:.2f}s"
        texts.append(_text(typed, "typed", times, len(texts)))
        clock += duration
        for line in wrapped(output):
            clock += _NEXT
            texts.append(_text(line, "said", f"animation-delay:{clock:.2f}s", len(texts)))
        texts.append("")
        clock += _READ
    texts.pop()
    width, height = 2 * _EDGE + COLUMNS * _CELL, 2 * _EDGE + len(texts) * _LINE
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}">',
            "<title>A session with lorry in a terminal</title>",
            f"<style>{_STYLE}</style>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
            *(text for text in texts if text),
            "</svg>\n",
        ]
    )


def wrapped(output: str) -> list[str]:
    """The lines of an output, broken where the window ends."""
    lines = (line.rstrip() for line in output.strip("\n").splitlines())
    window = textwrap.TextWrapper(COLUMNS, replace_whitespace=False, break_on_hyphens=False)
    return [part for line in lines for part in window.wrap(line) or [""]]


def _text(line: str, kind: str, times: str, row: int) -> str:
    if not line:
        return ""
    y = _EDGE + row * _LINE + 13
    # Columns stay below each other in whatever font the reader has.
    length = cell_len(line) * _CELL
    return (
        f'<text class="{kind}" style="{times}" x="{_EDGE}" y="{y}" textLength="{length}" '
        f'xml:space="preserve">{escape(line)}</text>'
    )


def _run(command: str, url: str) -> str:
    done = subprocess.run(
        ["bash", "-c", f'lorry() {{ "{sys.executable}" -m lorry "$@"; }}; {command}'],
        env={**os.environ, "LORRY_URL": url, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


def main(url: str, file: Path = FILE) -> None:
    try:
        turns = [(command, _run(command, url)) for command in SCENE]
    finally:
        for command in AFTERWARDS:
            _run(command, url)
    file.write_text(drawn(turns), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
