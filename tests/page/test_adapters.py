"""The page of adapters: its table, changes that other tabs see, and deletion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from page.conftest import Tabs
from support.browser import PHONE
from support.patience import wait_until
from support.server import Server

Archives = Callable[[int], Path]
Started = Callable[..., AbstractContextManager[Server]]

MANY = 200


@pytest.fixture
def named(server: Server, archives: Archives) -> Iterator[Callable[..., str]]:
    """`named("fiddler", 1, 2)`: an adapter with those archives as versions, for this test alone."""
    made = []

    def make(name: str, *seeds: int, **fields: str) -> str:
        for seed in seeds or (1,):
            server.upload(name, archives(seed), replace="true", **fields).raise_for_status()
        made.append(name)
        return name

    yield make
    for name in made:
        server.client.delete(f"/adapters/{name}")


def names(shown: Page) -> list[str]:
    return shown.locator("table.adapters tbody th a").all_text_contents()


def row(shown: Page, name: str) -> object:
    return shown.get_by_role("row").filter(has=shown.get_by_role("link", name=name, exact=True))


def test_the_table_tells_of_each(server: Server, tab: Tabs, named: Callable[..., str]) -> None:
    named("org/fiddler:2", 1, 2, description="Plays <b>loud</b>", scale="0.5")
    server.client.patch("/adapters/org/fiddler:2", json={"aliases": {"violin": 1}})
    server.generate("hello", "org/fiddler:2", tokens=3)
    one = tab(server)
    shown = one.open("#/adapters")
    found = shown.get_by_role("row").filter(has_text="org/fiddler:2")
    for text in ("Plays <b>loud</b>", "violin", "enabled", "0.5", "LORA", "device"):
        expect(found).to_contain_text(text)
    cells = shown.get_by_role("columnheader").all_text_contents()
    values = found.locator("th, td").all_text_contents()
    assert values[cells.index("Version")].strip() == "2"
    assert values[cells.index("Requests")].strip() == "1"
    assert one.barriers() == []


def rows_touched(server: Server, shown: Page, name: str) -> list[str]:
    """The rows in which anything changes on the page when another client changes one adapter."""
    shown.evaluate(
        """() => {
          window.touched = new Set();
          const near = ({ target }) => (target.closest ? target : target.parentElement);
          const rowOf = (change) => near(change).closest("tr");
          const name = (row) => row?.querySelector("th a")?.textContent ?? "the table";
          const note = (changes) => changes.forEach((one) => touched.add(name(rowOf(one))));
          const all = { childList: true, characterData: true, attributes: true, subtree: true };
          new MutationObserver(note).observe(document.querySelector(".adapters tbody"), all);
        }"""
    )
    server.client.patch(f"/adapters/{name}", json={"scale": 0.625}).raise_for_status()
    row = shown.get_by_role("row").filter(has=shown.get_by_role("link", name=name, exact=True))
    expect(row).to_contain_text("0.625")
    return shown.evaluate("[...touched]")  # type: ignore[no-any-return]


def test_two_hundred_are_searched_and_sorted(
    started: Started, archives: Archives, tab: Tabs
) -> None:
    with started() as server:
        for index in range(MANY):
            name = f"team-{index:03}"
            fields = {"scale": "2"} if index == 150 else {}
            server.upload(name, archives(1 + index % 2), **fields).raise_for_status()
        one = tab(server)
        shown = one.open("#/adapters")
        expect(shown.get_by_text(f"{MANY} adapters")).to_be_visible()
        assert len(names(shown)) == MANY
        expect(shown.get_by_role("columnheader", name="Requests")).to_be_visible()
        table = shown.locator("table.adapters")
        elements = table.evaluate("(one) => one.getElementsByTagName('*').length")
        assert elements <= 25 * MANY
        assert rows_touched(server, shown, "team-050") == ["team-050"]
        search = shown.get_by_label("Search adapters")
        search.fill("team-17")
        expect(shown.get_by_text(f"10 of {MANY}")).to_be_visible()
        assert names(shown) == [f"team-17{digit}" for digit in range(10)]
        shown.reload()
        expect(search).to_have_value("team-17")
        search.fill("nobody")
        expect(shown.get_by_text("No adapter matches")).to_be_visible()
        search.fill("")
        expect(shown.get_by_text(f"{MANY} adapters")).to_be_visible()
        shown.get_by_role("button", name="Scale").click()
        scale = shown.get_by_role("columnheader", name="Scale")
        expect(scale).to_have_attribute("aria-sort", "descending")
        assert names(shown)[0] == "team-150"
        shown.get_by_role("button", name="Scale").click()
        expect(scale).to_have_attribute("aria-sort", "ascending")
        assert names(shown)[-1] == "team-150"
        assert "sort=scale" in shown.url
        phone = tab(server, viewport=PHONE).open("#/adapters")
        expect(phone.get_by_role("link", name="team-199")).to_be_attached()
        assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        phone.get_by_label("Sort by").select_option("scale")
        assert names(phone)[0] == "team-150"


def test_what_one_tab_disables_another_sees(
    server: Server, tab: Tabs, named: Callable[..., str]
) -> None:
    name = named("fiddler")
    first, second = tab(server).open("#/adapters"), tab(server).open("#/adapters")
    switch = second.get_by_role("switch", name=f"Enable {name}")
    expect(switch).to_be_checked()
    first.get_by_role("switch", name=f"Enable {name}").click()
    expect(switch).not_to_be_checked()
    assert server.client.get(f"/adapters/{name}").json()["enabled"] is False


def test_a_refusal_stands_beside_what_was_refused(
    server: Server, tab: Tabs, named: Callable[..., str]
) -> None:
    name = named("fiddler")
    one = tab(server)
    shown = one.open("#/adapters")
    switch = shown.get_by_role("switch", name=f"Enable {name}")
    expect(switch).to_be_checked()
    one.expected.append("404")
    # The list is not read again, so the row stays.
    shown.route("**/adapters", lambda route: route.abort())
    one.expected.append("ERR_FAILED")
    server.client.delete(f"/adapters/{name}").raise_for_status()
    switch.click()
    refused = shown.get_by_role("row").filter(has_text=name).get_by_role("alert")
    expect(refused).to_contain_text("no adapter")
    expect(switch).to_be_checked()


def test_settings_are_changed_one_by_one(
    server: Server, tab: Tabs, named: Callable[..., str]
) -> None:
    name = named("org/fiddler")
    one = tab(server)
    shown = one.open(f"#/adapters/{name.replace('/', '%2F')}")
    expect(shown.get_by_role("heading", level=1)).to_have_text(name)
    expect(shown.get_by_role("heading", level=1)).to_be_focused()
    shown.get_by_label("Default scale", exact=True).fill("0.25")
    shown.get_by_role("button", name="Save the scale").click()
    expect(shown.get_by_role("definition").filter(has_text="0.25")).to_be_visible()
    evil = "<script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"
    shown.get_by_label("Description").fill(evil)
    shown.get_by_role("button", name="Save the description").click()
    expect(shown.locator(".description-full")).to_have_text(evil)
    shown.get_by_role("switch", name="Pinned").click()
    wait_until(lambda: server.client.get(f"/adapters/{name}").json()["pinned"], "the pin")
    record = server.client.get(f"/adapters/{name}").json()
    assert (record["scale"], record["description"]) == (0.25, evil)
    assert shown.locator("main script, main img").count() == 0
    assert one.barriers() == []
    shown.get_by_role("link", name="All adapters").click()
    expect(shown.get_by_role("row").filter(has_text=name)).to_contain_text(evil)


def test_it_goes_back_to_a_version_and_removes_one(
    server: Server, tab: Tabs, named: Callable[..., str]
) -> None:
    name = named("fiddler", 1, 2, 3)
    one = tab(server, viewport=PHONE)
    shown = one.open(f"#/adapters/{name}")
    current = shown.locator("tr[aria-current]")
    expect(current).to_contain_text("3")
    expect(current).to_contain_text("127.0.0.1")
    assert shown.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert one.barriers() == []
    shown.get_by_role("button", name="Roll back to 1").click()
    expect(current.get_by_role("rowheader")).to_contain_text("1")
    assert server.client.get(f"/adapters/{name}").json()["version"] == 1
    shown.get_by_role("button", name="Remove version 2").click()
    expect(shown.get_by_role("button", name="Remove version 2")).to_be_hidden()
    versions = server.client.get(f"/adapters/{name}").json()["versions"]
    assert [one["version"] for one in versions] == [1, 3]


def test_how_long_versions_are_kept(server: Server, tab: Tabs, named: Callable[..., str]) -> None:
    name = named("fiddler", 1, 2, 3, 4)

    def kept() -> tuple[int | None, float | None]:
        record = server.client.get(f"/adapters/{name}").json()
        return record["keep_versions"], record["keep_days"]

    one = tab(server)
    one.expected.append("422")
    shown = one.open(f"#/adapters/{name}")
    save = shown.get_by_role("button", name="Save how long versions are kept")
    expect(save).to_be_disabled()
    shown.get_by_label("Versions kept").fill("1")
    save.click()
    expect(shown.get_by_role("alert")).to_contain_text("keep_versions must be")
    shown.get_by_label("Versions kept").fill("3")
    shown.get_by_label("Days kept").fill("0.5")
    save.click()
    expect(shown.get_by_role("button", name="Roll back to 1")).to_be_hidden()
    assert kept() == (3, 0.5)
    versions = server.client.get(f"/adapters/{name}").json()["versions"]
    assert [one["version"] for one in versions] == [2, 3, 4]
    shown.get_by_label("Versions kept").fill("")
    shown.get_by_label("Days kept").fill("0")
    save.click()
    wait_until(lambda: kept() == (None, 0), "the server's default and no end")
    expect(save).to_be_disabled()


def test_the_files_of_a_version_are_downloaded_with_the_key(
    started: Started, archives: Archives, tab: Tabs, tmp_path: Path
) -> None:
    with started("--api-key", "sesame") as server:
        server.client.headers["authorization"] = "Bearer sesame"
        for seed in (1, 2):
            server.upload("org/pirate", archives(seed), replace="true").raise_for_status()
        one = tab(server)
        one.expected.append("401")
        shown = one.open("#/adapters/org%2Fpirate")
        shown.get_by_label("Key").fill("sesame")
        shown.keyboard.press("Enter")
        for button, file, version in (
            ("Download org/pirate", "org-pirate.tar", 2),
            ("Download version 1", "org-pirate-1.tar", 1),
        ):
            with shown.expect_download() as found:
                shown.get_by_role("button", name=button).click()
            assert found.value.suggested_filename == file
            asked = {"version": version}
            content = server.client.get("/adapters/org/pirate/content", params=asked).content
            assert Path(found.value.path()).read_bytes() == content


@pytest.mark.parametrize("width", [360, 768, 1024, 1280, 1920])
def test_the_table_fits_whatever_is_in_it(
    server: Server, tab: Tabs, named: Callable[..., str], width: int
) -> None:
    long = "It reads contracts and says which of their clauses are unusual, one by one. " * 20
    name = named("a-team-with-a-long-name/" + "contracts-" * 6 + "reviewer", description=long)
    for tokens in (1, 2):
        server.generate("hello", name, tokens=tokens)
    one = tab(server, viewport={"width": width, "height": 900})
    shown = one.open("#/adapters")
    expect(shown.get_by_role("row").filter(has_text=name)).to_contain_text("2")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    table = shown.locator(".scroller")
    assert table.evaluate("(one) => one.scrollWidth - one.clientWidth") <= 0
    lines = table.locator("[data-title=Size]").evaluate_all(
        """(all) => all.map((one) => {
          const range = document.createRange();
          range.selectNodeContents(one);
          return range.getClientRects().length;
        })"""
    )
    assert set(lines) == {1}
    assert one.barriers() == []


def test_what_is_deleted_can_be_kept_until_the_request_is_sent(
    server: Server, tab: Tabs, named: Callable[..., str]
) -> None:
    name = named("fiddler")
    one = tab(server)
    shown = one.page
    # The page's timers stand still: nothing here depends on how long it takes.
    shown.clock.install(time="2026-01-01T00:00:00")
    one.open(f"#/adapters/{name}")
    delete = shown.get_by_role("button", name="Delete")
    expect(delete).to_be_visible()
    shown.clock.pause_at("2026-01-01T01:00:00")
    delete.click()
    expect(shown.get_by_text("is deleted in a few seconds")).to_be_visible()
    expect(delete).to_be_disabled()
    shown.get_by_role("button", name="Undo").click()
    shown.clock.fast_forward(60_000)
    assert server.client.get(f"/adapters/{name}").status_code == 200
    expect(shown.get_by_text("is deleted in a few seconds")).to_be_hidden()
    delete.click()
    expect(shown.get_by_text("is deleted in a few seconds")).to_be_visible()
    shown.clock.fast_forward(60_000)
    wait_until(lambda: server.client.get(f"/adapters/{name}").status_code == 404, "the deletion")
    expect(shown.get_by_text("There is no such adapter.")).to_be_visible()


def test_a_key_that_may_not_upload_sees_no_control(
    started: Started, archives: Archives, tab: Tabs
) -> None:
    with started("--api-key", "sesame") as server:
        admin = {"authorization": "Bearer sesame"}
        server.client.headers.update(admin)
        server.upload("pirate", archives(1)).raise_for_status()
        made = server.client.post("/keys", json={"name": "reader", "scopes": ["generate"]})
        one = tab(server)
        one.expected.append("401")
        shown = one.open("#/adapters")
        shown.get_by_label("Key").fill(made.json()["key"])
        shown.keyboard.press("Enter")
        shown.get_by_role("link", name="pirate").click()
        expect(shown.get_by_role("heading", name="Versions")).to_be_visible()
        assert shown.get_by_role("switch").count() == 0
        assert shown.get_by_role("button").all_text_contents() == ["Sign out"]
        shown.get_by_role("link", name="All adapters").click()
        expect(shown.get_by_role("link", name="pirate")).to_be_visible()
        assert shown.get_by_text("Drop an adapter").count() == 0
        for page in ("Keys", "Audit"):
            assert shown.get_by_role("link", name=page).count() == 0
