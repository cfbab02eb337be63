"""Makes README's picture of the page: `make picture`.

The server has the default base with its samples. The answers in the picture are the server's.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from playwright.sync_api import expect

from support import browser
from support.server import ROOT

FILE = ROOT / "docs" / "page.png"
STATE = {
    "m": "prompt",
    "p": "How do I cook rice?",
    "c": [[], [["pirate"]], [["bard"]], [["pirate", 1], ["json", 0.5]]],
    "s": {"temperature": 0, "max_tokens": 60},
    "d": True,
}
SIZE = {"width": 1320, "height": 760}


def main(url: str, file: Path = FILE) -> None:
    state = base64.urlsafe_b64encode(json.dumps(STATE).encode()).decode().rstrip("=")
    with browser.browser() as one, browser.tab(one, url, viewport=SIZE) as tab:
        page = tab.open(f"#/playground?s={state}")
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_text("Answers: 4 complete.")).to_be_visible()
        page.screenshot(path=file)


if __name__ == "__main__":
    main(sys.argv[1])
