"""Keys and the audit on the page."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from playwright.sync_api import expect

from page.conftest import Tabs
from support.browser import PHONE
from support.server import Server


def test_keys_are_made_rotated_and_revoked_and_all_is_in_the_audit(
    started: Callable[..., AbstractContextManager[Server]], tab: Tabs
) -> None:
    with started("--api-key", "sesame") as server:
        server.client.headers["authorization"] = "Bearer sesame"
        one = tab(server)
        one.expected += ["401", "422"]
        shown = one.open("#/keys")
        shown.get_by_label("Key").fill("sesame")
        shown.keyboard.press("Enter")
        shown.get_by_text("New key").click()
        assert one.barriers() == []
        make = shown.get_by_role("button", name="Make the key")
        shown.get_by_label("Name").fill("legal-team")
        shown.get_by_label("Adapters", exact=True).first.fill("legal-*, ?")
        make.click()
        expect(shown.get_by_role("alert")).to_contain_text("prefix such as")
        shown.get_by_label("Adapters", exact=True).first.fill("legal-*")
        shown.get_by_label("Requests a minute").fill("60")
        make.click()
        secret = shown.locator("code.secret")
        expect(secret).to_be_visible()
        first = secret.text_content() or ""
        (record,) = server.client.get("/keys").json()["keys"]
        assert (record["scopes"], record["adapters"]) == (["generate"], ["legal-*"])
        assert record["limits"]["requests_per_minute"] == 60
        assert one.barriers() == []
        shown.get_by_role("button", name="Rotate legal-team").click()
        expect(secret).not_to_have_text(first)
        bearer = {"authorization": f"Bearer {first}"}
        assert server.client.get("/info", headers=bearer).status_code == 401
        bearer = {"authorization": f"Bearer {secret.text_content()}"}
        assert server.client.get("/info", headers=bearer).status_code == 200
        shown.get_by_role("button", name="Revoke… legal-team").click()
        shown.get_by_role("button", name="Revoke legal-team").click()
        expect(shown.get_by_text("There is no key but the server's own")).to_be_visible()
        shown.get_by_role("link", name="Audit").click()
        for action in ("created", "rotated", "revoked"):
            expect(shown.get_by_role("row").filter(has_text=action)).to_be_visible()
        assert one.barriers() == []


def test_what_a_key_may_is_changed(
    started: Callable[..., AbstractContextManager[Server]], tab: Tabs
) -> None:
    with started("--api-key", "sesame") as server:
        server.client.headers["authorization"] = "Bearer sesame"
        body = {
            "name": "legal-team",
            "scopes": ["generate"],
            "adapters": ["legal-*"],
            "limits": {"requests_per_minute": 60, "max_scale": 2.5},
        }
        server.client.post("/keys", json=body).raise_for_status()
        one = tab(server, viewport=PHONE)
        one.expected += ["401", "422"]
        shown = one.open("#/keys")
        shown.get_by_label("Key").fill("sesame")
        shown.keyboard.press("Enter")
        shown.get_by_role("button", name="Change legal-team").click()
        expect(shown.get_by_role("heading", name="Change legal-team")).to_be_focused()
        form = shown.locator("section.card form")
        expect(form.get_by_label("Adapters", exact=True).first).to_have_value("legal-*")
        expect(form.get_by_label("generate")).to_be_checked()
        form.get_by_label("generate").uncheck()
        form.get_by_role("button", name="Save").click()
        expect(form.get_by_role("alert")).to_contain_text("scopes")
        form.get_by_label("upload").check()
        form.get_by_label("Adapters", exact=True).first.fill("")
        form.get_by_label("Requests a minute").fill("")
        form.get_by_label("Share when busy").fill("0.5")
        form.get_by_label("Description").fill("for the build")
        assert shown.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert one.barriers() == []
        form.get_by_role("button", name="Save").click()
        row = shown.get_by_role("row").filter(has_text="legal-team")
        expect(row).to_contain_text("Share when busy: 0.5")
        expect(row).not_to_contain_text("Requests a minute")
        (record,) = server.client.get("/keys").json()["keys"]
        assert (record["scopes"], record["adapters"]) == (["upload"], None)
        limits = {name: value for name, value in record["limits"].items() if value is not None}
        assert limits == {"max_scale": 2.5, "weight": 0.5}
        assert record["description"] == "for the build"


def test_the_audit_is_filtered_and_paged(
    server: Server, tab: Tabs, archives: Callable[[int], Path]
) -> None:
    for index in range(60):
        fields = {"description": f"take {index}"}
        server.client.patch("/adapters/pirate", json=fields).raise_for_status()
    one = tab(server, viewport=PHONE)
    shown = one.open("#/audit")
    assert shown.get_by_role("link", name="Keys").count() == 0
    rows = shown.locator("tbody tr")
    expect(rows).to_have_count(50)
    expect(rows.first).to_contain_text("take 59")
    shown.get_by_role("button", name="Show earlier ones").click()
    expect(rows.nth(60)).to_be_visible()
    shown.get_by_label("Adapter", exact=True).fill("legal")
    shown.get_by_role("button", name="Filter").click()
    expect(rows.filter(has_text="pirate")).to_have_count(0)
    expect(rows.first).to_contain_text("legal added")
    assert shown.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert one.barriers() == []
