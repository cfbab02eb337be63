"""Uploads on the page: dropped and chosen, refused, replaced, from a source."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from page.conftest import Tabs
from support.browser import Tab
from support.server import Server

DROP = """
(files) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
    transfer.items.add(new File([bytes], name));
  }
  const given = { dataTransfer: transfer, bubbles: true, cancelable: true };
  document.body.dispatchEvent(new DragEvent("dragover", given));
  document.body.dispatchEvent(new DragEvent("drop", given));
}
"""


def drop(shown: Page, *paths: Path) -> None:
    """Lets files fall on the page, as the browser would report it."""
    expect(shown.get_by_text("Drop an adapter anywhere")).to_be_visible()
    shown.evaluate(DROP, [[p.name, base64.b64encode(p.read_bytes()).decode()] for p in paths])


@pytest.fixture
def folder(peft_adapter: Callable[..., Path]) -> Path:
    return peft_adapter("llama", "plain", seed=7)


@pytest.fixture
def gone(server: Server) -> Iterator[list[str]]:
    """Names whose adapters are removed after the test."""
    names: list[str] = []
    yield names
    for name in names:
        server.client.delete(f"/adapters/{name}")


def opened(one: Tab) -> Page:
    return one.open("#/adapters")


def test_an_archive_is_dropped_named_and_there(
    server: Server, tab: Tabs, archives: Callable[[int], Path], tmp_path: Path, gone: list[str]
) -> None:
    archive = Path(shutil.copy(archives(5), tmp_path / "My fiddler.zip"))
    one = tab(server)
    shown = opened(one)
    drop(shown, archive)
    name = shown.get_by_label("Name", exact=True)
    expect(name).to_have_value("My-fiddler")
    name.fill("fiddler")
    gone.append("fiddler")
    shown.get_by_label("Description").fill("Plays")
    assert one.barriers() == []
    shown.get_by_role("button", name="Upload", exact=True).click()
    expect(shown.get_by_text("is there as version")).to_be_visible()
    expect(shown.get_by_role("table").get_by_role("link", name="fiddler")).to_be_visible()
    assert one.barriers() == []
    assert server.client.get("/adapters/fiddler").json()["description"] == "Plays"


def test_the_files_of_a_folder_become_a_new_version(
    server: Server,
    tab: Tabs,
    folder: Path,
    archives: Callable[[int], Path],
    gone: list[str],
) -> None:
    gone.append("adapter")
    server.upload("adapter", archives(5)).raise_for_status()
    shown = opened(tab(server))
    drop(shown, folder / "adapter_config.json", folder / "adapter_model.safetensors")
    expect(shown.get_by_text("adapter is there: this becomes its newest version")).to_be_visible()
    shown.get_by_role("button", name="Add version").click()
    expect(shown.get_by_text("is there as version 2")).to_be_visible()


def test_a_chosen_folder_of_folders_is_several_adapters(
    server: Server, tab: Tabs, folder: Path, tmp_path: Path, gone: list[str]
) -> None:
    gone += ["tax", "labour"]
    shutil.copytree(folder, tmp_path / "runs" / "tax" / "checkpoint-500")
    shutil.copytree(folder, tmp_path / "runs" / "labour")
    (tmp_path / "runs" / "tax" / "optimizer.pt").write_bytes(b"not for anybody")
    shown = opened(tab(server))
    shown.get_by_label("A folder to upload").set_input_files(tmp_path / "runs")
    names = shown.get_by_label("Name", exact=True)
    expect(names).to_have_count(2)
    assert {names.nth(0).input_value(), names.nth(1).input_value()} == {"tax", "labour"}
    shown.get_by_role("button", name="Upload all 2").click()
    expect(shown.get_by_text("is there as version")).to_have_count(2)
    assert {"tax", "labour"} <= {
        one["name"] for one in server.client.get("/adapters").json()["adapters"]
    }


def test_a_folder_is_dropped(
    server: Server, tab: Tabs, folder: Path, tmp_path: Path, gone: list[str]
) -> None:
    """As the browser does it: a drop that has entries of a real folder, not files."""
    gone += ["tax", "labour"]
    shutil.copytree(folder, tmp_path / "runs" / "tax" / "checkpoint-500")
    shutil.copytree(folder, tmp_path / "runs" / "labour")
    for number in range(150):  # more than a reader of a folder gives at once
        (tmp_path / "runs" / "tax" / f"log-{number}.txt").write_text("nothing")
    one = tab(server)
    shown = opened(one)
    expect(shown.get_by_text("Drop an adapter anywhere")).to_be_visible()
    drag = shown.context.new_cdp_session(shown)
    carried = {"items": [], "files": [str(tmp_path / "runs")], "dragOperationsMask": 1}
    at = {"x": 300, "y": 300, "data": carried}
    drag.send("Input.dispatchDragEvent", {"type": "dragEnter", **at})
    drag.send("Input.dispatchDragEvent", {"type": "dragOver", **at})
    expect(shown.get_by_text("Let go to upload.")).to_be_visible()
    # What lies under the pointer is another element by now.
    drag.send("Input.dispatchDragEvent", {"type": "dragOver", **at})
    drag.send("Input.dispatchDragEvent", {"type": "drop", **at})
    names = shown.get_by_label("Name", exact=True)
    expect(names).to_have_count(2)
    assert {names.nth(0).input_value(), names.nth(1).input_value()} == {"tax", "labour"}
    shown.get_by_role("button", name="Upload all 2").click()
    expect(shown.get_by_text("is there as version")).to_have_count(2)


def test_every_problem_of_a_refused_upload_is_listed_where_it_occurred(
    server: Server, tab: Tabs, folder: Path, tmp_path: Path
) -> None:
    config = (folder / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(
        config.replace('"r": 8', '"r": "eight"').replace('"lora_alpha": 16', '"lora_alpha": "x"')
    )
    one = tab(server)
    one.expected.append("422")
    shown = opened(one)
    drop(shown, tmp_path / "adapter_config.json", folder / "adapter_model.safetensors")
    shown.get_by_role("button", name="Upload", exact=True).click()
    refused = shown.get_by_role("listitem").get_by_role("alert")
    expect(refused).to_contain_text("lora_alpha")
    expect(refused.get_by_role("listitem").filter(has_text="r is")).to_be_visible()
    assert one.barriers() == []
    assert server.client.get("/adapters/adapter").status_code == 404
    shown.get_by_role("button", name="Discard adapter").click()
    expect(refused).to_be_hidden()


def test_what_is_no_adapter_is_said_before_anything_is_sent(
    server: Server, tab: Tabs, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    shown = opened(tab(server))
    drop(shown, tmp_path / "notes.txt")
    expect(shown.get_by_role("alert")).to_contain_text("There is no adapter here")


def test_a_source_that_is_not_allowed_is_refused_in_the_server_s_words(
    server: Server, tab: Tabs
) -> None:
    one = tab(server)
    one.expected += ["403", "404"]
    shown = opened(one)
    shown.get_by_role("button", name="From a source").click()
    shown.get_by_label("Source", exact=True).fill("https://example.invalid/legal.zip")
    shown.keyboard.press("Enter")
    expect(shown.get_by_label("Name", exact=True)).to_have_value("legal")
    shown.get_by_label("Name", exact=True).fill("elsewhere")
    shown.get_by_role("button", name="Upload", exact=True).click()
    expect(shown.get_by_role("alert")).to_contain_text("--adapter-sources")


def test_an_upload_on_its_way_can_be_cancelled(
    server: Server, tab: Tabs, archives: Callable[[int], Path], tmp_path: Path
) -> None:
    archive = Path(shutil.copy(archives(5), tmp_path / "fiddler.zip"))
    one = tab(server)
    one.expected.append("ERR_")
    shown = opened(one)
    drop(shown, archive)
    # The server takes no step meanwhile, so it is on its way until it is cancelled.
    expect(shown.get_by_label("Name", exact=True)).to_have_value("fiddler")
    with server.frozen():
        shown.get_by_role("button", name="Upload", exact=True).click()
        shown.get_by_role("button", name="Cancel fiddler").click()
        expect(shown.get_by_role("progressbar")).to_be_hidden()
    assert server.client.get("/adapters/fiddler").status_code in (200, 404)
    server.client.delete("/adapters/fiddler")
