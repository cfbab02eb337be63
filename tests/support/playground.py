"""The playground's parts, as a person finds them on the page."""

from __future__ import annotations

import base64
import json
from typing import Any

from playwright.sync_api import Locator, Page, expect

from support.browser import Tab


def column(page: Page, number: int) -> Locator:
    return page.get_by_role("region", name=f"Column {number}", exact=True)


def answer(page: Page, number: int, turn: int = 1) -> Locator:
    return column(page, number).get_by_role("group", name=f"answer {turn}")


def ended(page: Page, number: int, turn: int = 1) -> str:
    """The text of an answer that is complete."""
    box = column(page, number).locator(".answer").nth(turn - 1)
    expect(box).to_have_attribute("data-state", "done")
    return answer(page, number, turn).text_content() or ""


def setting(page: Page, name: str, value: object) -> None:
    page.locator("#settings").evaluate("(one) => (one.open = true)")
    page.get_by_label(name).fill(str(value))


def state(page: Page) -> dict[str, Any]:
    """What the address says."""
    text = page.evaluate("location.hash.split('s=')[1] ?? 'e30'")
    return json.loads(base64.urlsafe_b64decode(text + "=="))  # type: ignore[no-any-return]


def run(page: Page) -> None:
    page.get_by_role("button", name="Run").click()


def greedy(tab: Tab, tokens: int = 12) -> Page:
    """A newcomer's playground with a prompt as it is, greedy and short."""
    page = tab.open()
    page.get_by_role("button", name="Prompt", exact=True).click()
    expect(column(page, 2).get_by_role("combobox")).to_have_value("legal")
    setting(page, "Temperature", 0)
    setting(page, "Most tokens", tokens)
    return page


def pick(page: Page, number: int, name: str) -> None:
    """Chooses what a column answers with, with the keyboard."""
    field = column(page, number).get_by_role("combobox").last
    field.click()
    field.fill(name)
    expect(column(page, number).get_by_role("option", selected=True)).to_contain_text(name)
    field.press("Enter")
    expect(field).to_have_value(name)
