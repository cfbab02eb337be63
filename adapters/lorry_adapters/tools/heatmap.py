"""A picture of where an adapter acts: layers across, modules down, darker for more.

SVG, written by hand: browsers and forges show it, it is text in a repository, and no plotting
library has to be installed for a grid of rectangles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from lorry_adapters.tools.norms import ModuleNorm

_CELL: Final = 22
_TOP: Final = 70
_INK, _EMPTY, _LINE = "#24292f", "#f6f8fa", "#d0d7de"
_LIGHT, _DARK = (221, 235, 247), (8, 48, 107)


def svg(found: Sequence[ModuleNorm], title: str) -> str:
    """The whole file. Cells are ||delta||/||W|| where every base norm is known, else ||delta||."""
    relative = all(one.base for one in found)
    values = {
        (one.part, one.layer): (one.relative if relative else one.norm) or 0.0 for one in found
    }
    unit = "||change|| / ||W||" if relative else "||s·B·A||"
    rows = list(dict.fromkeys(one.part for one in found))
    layers: list[int | None] = [*sorted({one.layer for one in found if one.layer is not None})]
    if any(one.layer is None for one in found):
        layers.append(None)
    left = 24 + 7 * max(len(row) for row in rows)
    width = max(left + _CELL * len(layers) + 24, 420)
    height = _TOP + _CELL * len(rows) + 70
    largest = max(values.values()) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="{_INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(12, 24, title, "font-weight='bold' font-size='13'"),
        _text(12, 42, f"{unit} by layer and module; empty: no adapter there", "font-size='11'"),
        *(
            _text(left - 8, _TOP + _CELL * index + 15, row, "text-anchor='end'")
            for index, row in enumerate(rows)
        ),
        *_columns(left, layers),
        *_cells(left, rows, layers, values, largest),
        *_legend(left, _TOP + _CELL * len(rows) + 30, largest),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _columns(left: int, layers: Sequence[int | None]) -> list[str]:
    every = 1 if len(layers) <= 40 else 5
    return [
        _text(
            left + _CELL * index + _CELL / 2,
            _TOP - 6,
            str(layer),
            "text-anchor='middle' font-size='10'",
        )
        for index, layer in enumerate(layers)
        if layer is not None and index % every == 0
    ]


def _cells(
    left: int,
    rows: Sequence[str],
    layers: Sequence[int | None],
    values: Mapping[tuple[str, int | None], float],
    largest: float,
) -> list[str]:
    cells = []
    layered = {row for row, layer in values if layer is not None}
    for y, row in enumerate(rows):
        for x, layer in enumerate(layers):
            value = values.get((row, layer))
            if value is None and (layer is None or row not in layered):
                continue
            fill = _EMPTY if value is None else colour(value / largest)
            where = row if layer is None else f"layer {layer} {row}"
            what = "no adapter" if value is None else f"{value:.4g}"
            cells.append(
                f'<rect x="{left + _CELL * x}" y="{_TOP + _CELL * y}" width="{_CELL - 1}" '
                f'height="{_CELL - 1}" fill="{fill}" stroke="{_LINE}" stroke-width="0.5">'
                f"<title>{escape(f'{where}: {what}')}</title></rect>"
            )
    return cells


def _legend(left: int, top: int, largest: float) -> list[str]:
    steps = 10
    parts = [
        f'<rect x="{left + 14 * step}" y="{top}" width="14" height="12" '
        f'fill="{colour(step / steps)}"/>'
        for step in range(steps + 1)
    ]
    end = left + 14 * (steps + 1)
    parts.append(_text(left - 8, top + 11, "0", "text-anchor='end' font-size='11'"))
    parts.append(_text(end + 8, top + 11, f"{largest:.4g}", "font-size='11'"))
    return parts


def colour(share: float) -> str:
    """From light to dark blue; 0 is the lightest, so that it still differs from `no adapter`."""
    share = min(1.0, max(0.0, share))
    mixed = (round(a + (b - a) * share) for a, b in zip(_LIGHT, _DARK, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
