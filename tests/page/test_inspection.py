"""Where an adapter acts: the picture on its page, against what the server says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from page.conftest import Tabs
from support.browser import PHONE
from support.peft_kinds import KINDS
from support.peft_made import load_base, make
from support.server import Server

TEMPLATE = "<b>{% for m in messages %}{{ m.content }}{% endfor %}</b>"


def named(kind: str) -> str:
    """The name under which a kind is uploaded."""
    return re.sub(r"[^a-z0-9]+", "-", kind)


@pytest.fixture(scope="module")
def inspected(
    server: Server,
    tiny_model: Callable[[str], Path],
    zip_of: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """`inspected("dora")`: uploads that kind under its own name, and returns its inspection."""
    made: dict[str, dict[str, Any]] = {}

    def upload(kind: str, words: dict[str, str] | None = None) -> dict[str, Any]:
        if kind not in made:
            folder = tmp_path_factory.mktemp("kind")
            make(KINDS[kind], "llama", load_base(tiny_model("llama")), folder)
            for name, text in (words or {}).items():
                (folder / name).write_text(text)
            server.upload(named(kind), zip_of(folder)).raise_for_status()
            shutil.rmtree(folder)
            asked = {"inspect": "true"}
            answer = server.client.get(f"/adapters/{named(kind)}", params=asked)
            made[kind] = answer.json()["inspection"]
        return made[kind]

    yield upload
    for kind in made:
        server.client.delete(f"/adapters/{named(kind)}")


def cells(shown: Page) -> dict[tuple[str, str], str]:
    """The texts of the picture's cells by module and layer."""
    grid = shown.get_by_role("grid", name="Layers and modules")
    layers = [text.strip() for text in grid.get_by_role("columnheader").all_text_contents()][1:]
    found = {}
    for row in grid.locator("tbody tr").all():
        part = row.get_by_role("rowheader").text_content()
        values = row.get_by_role("gridcell").all_text_contents()
        for layer, value in zip(layers, values, strict=True):
            found[part or "", layer] = value.strip()
    return found


def expected(seen: dict[str, Any], field: str) -> dict[tuple[str, str], float | None]:
    return {
        (one["part"], "outside the layers–" if one["layer"] is None else str(one["layer"])): one[
            field
        ]
        for one in seen["modules"]
    }


@pytest.mark.parametrize(
    "kind", ["layers_to_transform", "dora", "ia3, feedforward", "modules_to_save=head"]
)
def test_a_cell_is_the_norm_of_a_module(
    server: Server, tab: Tabs, inspected: Callable[..., dict[str, Any]], kind: str
) -> None:
    seen = inspected(kind)
    one = tab(server)
    shown = one.open(f"#/adapters/{named(kind)}")
    expect(shown.get_by_role("heading", name="Where it acts")).to_be_visible()
    told = cells(shown)
    norms = expected(seen, "norm")
    for place, text in told.items():
        if place not in norms:
            assert text == "not changed"
        elif norms[place] is None:
            assert text == "no norm"
        else:
            assert float(text) == pytest.approx(norms[place], rel=1e-3)
    assert norms.keys() <= told.keys()
    shown.get_by_label("Show").select_option("parameters")
    parameters = expected(seen, "parameters")
    numbers = {
        place: int(text.replace(",", ""))
        for place, text in cells(shown).items()
        if text[0].isdigit()
    }
    assert numbers == parameters
    assert one.barriers() == []


def test_stronger_is_darker_and_nothing_is_empty(
    server: Server, tab: Tabs, inspected: Callable[..., dict[str, Any]]
) -> None:
    seen = inspected("rank_pattern")
    largest = max(seen["modules"], key=lambda one: one["norm"])
    smallest = min(seen["modules"], key=lambda one: one["norm"])
    inspected("layers_to_transform")
    shown = tab(server).open("#/adapters/rank-pattern")

    def share(one: dict[str, Any]) -> float:
        row = shown.get_by_role("grid").get_by_role("row").filter(has_text=one["part"])
        cell = row.get_by_role("gridcell").nth(one["layer"])
        return float(cell.evaluate("(it) => getComputedStyle(it).getPropertyValue('--share')"))

    assert share(largest) == 1
    assert share(smallest) == pytest.approx(smallest["norm"] / largest["norm"], rel=1e-3)
    shown.goto(f"{server.url}/#/adapters/layers-to-transform")
    empty = shown.get_by_role("gridcell", name="not changed").first
    expect(empty).to_have_css("background-color", "rgba(0, 0, 0, 0)")


def test_the_keyboard_goes_through_it(
    server: Server, tab: Tabs, inspected: Callable[..., dict[str, Any]]
) -> None:
    seen = inspected("rank_pattern")
    shown = tab(server).open("#/adapters/rank-pattern")
    first, below = [one for one in seen["modules"] if one["layer"] == 0][:2]
    beside = next(m for m in seen["modules"] if m["layer"] == 1 and m["part"] == below["part"])
    readout = shown.locator(".readout")
    shown.get_by_label("Show").focus()
    shown.keyboard.press("Tab")
    expect(readout).to_contain_text(f"layer 0, {first['part']}: ‖s·B·A‖")
    expect(readout).to_contain_text(f"rank {first['rank']}")
    shown.keyboard.press("ArrowDown")
    expect(readout).to_contain_text(f"layer 0, {below['part']}")
    shown.keyboard.press("ArrowRight")
    expect(readout).to_contain_text(f"layer 1, {below['part']}")
    expect(readout).to_contain_text(f"rank {beside['rank']}")
    shown.keyboard.press("ArrowRight")
    expect(shown.locator("td:focus")).to_have_count(1)
    shown.keyboard.press("Tab")
    expect(shown.get_by_text("Figures by module")).to_be_focused()
    shown.keyboard.press("Enter")
    table = shown.get_by_role("region", name="Table of modules")
    expect(table.get_by_role("rowheader", name=below["part"])).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(
    server: Server, tab: Tabs, inspected: Callable[..., dict[str, Any]], scheme: str
) -> None:
    inspected("rank_pattern")
    one = tab(server, viewport=PHONE, color_scheme=scheme)
    shown = one.open("#/adapters/rank-pattern")
    expect(shown.get_by_role("grid")).to_be_visible()
    shown.get_by_text("Figures by module").click()
    assert shown.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert one.barriers() == []


def test_what_it_brings_is_shown_as_text(
    server: Server, tab: Tabs, inspected: Callable[..., dict[str, Any]]
) -> None:
    labels = {"id2label": {"0": "<i>bad</i>", "1": "good"}}
    inspected(
        "lora",
        {
            "chat_template.jinja": TEMPLATE,
            "config.json": json.dumps(labels),
            "added_tokens.json": json.dumps({"<|far|>": 10**6}),
        },
    )
    one = tab(server)
    shown = one.open("#/adapters/lora")
    for text in ("<i>bad</i>", "good"):
        expect(shown.get_by_role("listitem").filter(has_text=text)).to_be_visible()
    expect(shown.get_by_role("listitem").filter(has_text="token '<|far|>'")).to_be_visible()
    shown.get_by_text("Its chat template").click()
    expect(shown.locator(".brings pre")).to_have_text(TEMPLATE)
    assert one.barriers() == []


def test_virtual_tokens_have_no_modules(
    server: Server, tab: Tabs, inspected: Callable[..., dict[str, Any]]
) -> None:
    inspected("prompt tuning")
    shown = tab(server).open("#/adapters/prompt-tuning")
    expect(shown.get_by_text("it puts tokens of its own before the prompt")).to_be_visible()
    assert shown.get_by_role("grid").count() == 0
