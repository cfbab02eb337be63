"""A picture of a report: throughput and the wait for the first token, row by row, as SVG.

SVG, written by hand: browsers and forges show it, it is text in a repository, and no plotting
library has to be installed for two bar charts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from lorry.bench.report import Report

PANEL, GAP, LINE, TOP = 280, 90, 30, 64
LETTER = 7.5
"""Widest a letter of a label is on average, in pixels."""
_INK, _BAR, _FAINT = "#24292f", "#4078c0", "#d0d7de"


@dataclass(frozen=True, slots=True)
class _Bar:
    value: float
    low: float
    high: float


def svg(report: Report, title: str) -> str:
    """The whole file."""
    names = [result.row.name for result in report.results]
    every = [result.figures for result in report.results]
    rates = [_Bar(f.tokens_per_second, min(f.throughputs), max(f.throughputs)) for f in every]
    waits = [
        _Bar(f.first_token.p50 * 1000, f.first_token.p50 * 1000, f.first_token.p99 * 1000)
        for f in every
    ]
    labels = max(120, math.ceil(LETTER * max(map(len, names), default=0)) + 24)
    height = TOP + LINE * len(names) + 40
    width = labels + 2 * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13" fill="{_INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(12, 24, title, "font-weight='bold'"),
        *(
            _text(labels - 12, TOP + LINE * index + 20, name, "text-anchor='end'")
            for index, name in enumerate(names)
        ),
        *_panel(labels, "output tokens per second (range of repeats)", rates, "{:.1f}"),
        *_panel(labels + PANEL + GAP, "first token, ms (p50; line to p99)", waits, "{:.0f}"),
        _text(12, height - 12, report.machine.one_line, f"font-size='11' fill='{_INK}'"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(left: int, title: str, bars: Sequence[_Bar], form: str) -> list[str]:
    largest = max((bar.high for bar in bars if not math.isnan(bar.high)), default=0.0) or 1.0
    parts = [_text(left, TOP - 10, title, "font-size='12'")]
    for index, bar in enumerate(bars):
        y = TOP + LINE * index
        if math.isnan(bar.value):
            parts.append(_text(left + 6, y + 20, "-", ""))
            continue
        length, low, high = (PANEL * x / largest for x in (bar.value, bar.low, bar.high))
        middle = y + LINE / 2
        parts += [
            f'<rect x="{left}" y="{y + 6}" width="{length:.1f}" height="{LINE - 12}" '
            f'fill="{_BAR}"/>',
            f'<line x1="{left + low:.1f}" x2="{left + high:.1f}" y1="{middle}" y2="{middle}" '
            f'stroke="{_INK}" stroke-width="2"/>',
            _text(left + max(length, high) + 8, y + 20, form.format(bar.value), ""),
        ]
    bottom = TOP + LINE * len(bars)
    parts.append(f'<line x1="{left}" x2="{left}" y1="{TOP}" y2="{bottom}" stroke="{_FAINT}"/>')
    return parts


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
