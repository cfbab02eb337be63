"""A flame graph of stacks, as an SVG without scripts: what lies on what, as wide as its time.

    python -m benchmarks.flame decode.txt decode.svg --below step_by_step --title "..."

reads the raw format of py-spy (`main;a (file.py:3);b (file.so) 17`). Frames narrower than a
thousandth of the whole are left out; point at one to read its whole name.
"""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LINE, TOP, LETTER = 1200, 16, 34, 6.5
NARROWEST = 0.001


@dataclass(slots=True)
class Frame:
    samples: int = 0
    above: dict[str, Frame] = field(default_factory=dict)


def tree(stacks: Iterable[str], below: str) -> Frame:
    """Of the stacks with a frame that has `below` in its name, from that frame on."""
    root = Frame()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        first = next((i for i, name in enumerate(frames) if below in name), None)
        if first is None:
            continue
        frame = root
        frame.samples += int(count)
        for name in frames[first:]:
            frame = frame.above.setdefault(_short(name), Frame())
            frame.samples += int(count)
    return root


def svg(root: Frame, title: str) -> str:
    rows: list[str] = []
    deepest = _draw(root, 0.0, 0, root.samples, rows)
    height = TOP + LINE * (deepest + 1) + 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n'
        f'<text x="6" y="20" font-size="14">{escape(title)}</text>\n'
    )
    return head + "\n".join(rows) + "\n</svg>\n"


def _draw(frame: Frame, left: float, depth: int, total: int, rows: list[str]) -> int:
    """The frames above `frame`, widest first; the depth that they reach."""
    deepest = depth
    for name, child in sorted(frame.above.items(), key=lambda item: -item[1].samples):
        share = child.samples / total
        width = WIDTH * share
        if share >= NARROWEST:
            y = TOP + LINE * depth
            shade = zlib.crc32(name.encode()) % 60
            text = escape(name[: int(width / LETTER)])
            rows.append(
                f"<g><title>{escape(name)} {share:.1%}</title>"
                f'<rect x="{left:.1f}" y="{y}" width="{max(width - 0.5, 0.5):.1f}" '
                f'height="{LINE - 1}" fill="rgb(250,{150 + shade},{90 + shade})"/>'
                + (f'<text x="{left + 2:.1f}" y="{y + 11}">{text}</text>' if len(text) > 2 else "")
                + "</g>"
            )
            deepest = max(deepest, _draw(child, left, depth + 1, total, rows))
        left += width
    return deepest


def _short(name: str) -> str:
    """Without line numbers, folders and the arguments of templates."""
    name = re.sub(r":\d+\)$", ")", name)
    name = re.sub(r"\((?:[^()]*/)?([^()/]+)\)$", r"(\1)", name)
    while (bare := re.sub(r"<[^<>]*>", "", name)) != name:
        name = bare
    return name[:90]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flame", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("stacks", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--below", default="", help="draw from the frame with this in its name on")
    parser.add_argument("--title", default="")
    given = parser.parse_args()
    root = tree(given.stacks.read_text().splitlines(), given.below)
    if not root.samples:
        parser.error(f"{given.stacks}: no stack has {given.below!r} in it")
    given.svg.write_text(svg(root, given.title))


if __name__ == "__main__":
    main()
