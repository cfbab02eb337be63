"""The playground: columns that stream at once, scales, seeds, the address, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from page.conftest import Tabs
from support.browser import PHONE
from support.patience import LONG, wait_until
from support.playground import answer, column, ended, greedy, pick, run, setting, state
from support.server import Server, running


@pytest.fixture(scope="module")
def endless(
    long_model: Path,
    archives: Callable[[int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server whose answers go on as long as somebody reads them."""
    home = tmp_path_factory.mktemp("endless") / "home"
    with running(long_model, home, "--served-model-name", "tiny") as one:
        for seed, name in ((1, "pirate"), (2, "legal")):
            one.upload(name, archives(seed)).raise_for_status()
        yield one


def test_a_newcomer_sees_the_base_beside_the_first_adapter(server: Server, tab: Tabs) -> None:
    page = tab(server).open()
    setting(page, "Most tokens", 20)
    expect(column(page, 1).get_by_role("combobox")).to_have_value("Base model")
    expect(column(page, 2).get_by_role("combobox")).to_have_value("legal")
    expect(page.get_by_label("Message")).to_have_value("How do I cook rice?")
    run(page)
    first, second = ended(page, 1), ended(page, 2)
    assert first and second and first != second
    expect(page.get_by_role("status").filter(has_text="Answers: 2 complete.")).to_be_visible()
    expect(column(page, 2).locator(".figures")).to_contain_text("legal@1 × 1")
    expect(column(page, 1).locator(".figures")).to_contain_text("tokens/s")


def test_its_answers_are_the_server_s(server: Server, tab: Tabs) -> None:
    page = greedy(tab(server))
    page.get_by_label("Prompt", exact=True).fill("The court")
    run(page)
    for number, adapter in ((1, None), (2, "legal")):
        expected = server.client.post(
            "/v1/completions",
            json={"prompt": "The court", "adapter": adapter, "temperature": 0, "max_tokens": 12},
        ).json()
        assert ended(page, number) == expected["choices"][0]["text"]


def test_four_columns_stream_in_one_batch(endless: Server, tab: Tabs) -> None:
    page = greedy(tab(endless), LONG // 4)
    for _ in range(2):
        page.get_by_role("button", name="+ Column").click()
    expect(page.get_by_role("button", name="+ Column")).to_have_count(0)
    pick(page, 3, "pirate")
    run(page)
    for number in range(1, 5):
        expect(answer(page, number)).not_to_be_empty()
    assert endless.metrics()["vllm:num_requests_running"] == 4
    expect(page.get_by_role("status").filter(has_text="Answering in 4 of 4")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status").filter(has_text="Answers: 4 stopped.")).to_be_visible()
    wait_until(lambda: endless.metrics()["vllm:num_requests_running"] == 0, "the server to stop")
    for number in range(1, 5):
        expect(answer(page, number)).not_to_be_empty()


def test_a_slider_changes_the_answer(server: Server, tab: Tabs) -> None:
    page = greedy(tab(server))
    run(page)
    base, before = ended(page, 1), ended(page, 2)
    slider = column(page, 2).get_by_role("slider", name="scale of legal")
    slider.fill("0")
    column(page, 2).get_by_role("button", name="regenerate").click()
    expect(answer(page, 2)).to_have_text(base)
    assert base != before
    slider.fill("1")
    column(page, 2).get_by_role("button", name="+ Add to the sum").click()
    expect(column(page, 2).get_by_role("combobox").last).to_have_value("pirate")
    column(page, 2).get_by_label("scale of pirate, as a number").fill("-0.5")
    column(page, 2).get_by_role("button", name="regenerate").click()
    expect(column(page, 2).locator(".figures")).to_contain_text("legal@1 × 1 + pirate@1 × -0.5")


def test_the_same_seed_is_the_same_answer(server: Server, tab: Tabs) -> None:
    page = greedy(tab(server))
    setting(page, "Temperature", 1.5)
    pick(page, 2, "Base model")
    run(page)
    first = ended(page, 1)
    assert ended(page, 2) == first
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Regenerate", exact=True).first.click()
    assert ended(page, 1) == first
    setting(page, "Seed", "1")
    run(page)
    expect(answer(page, 1)).not_to_have_text(first)


def test_an_address_is_a_comparison_and_runs_nothing(server: Server, tab: Tabs) -> None:
    page = greedy(tab(server))
    page.get_by_label("Prompt", exact=True).fill("ünd 東京 👩‍🌾 'quoted'")
    setting(page, "Seed", 7)
    setting(page, "Most tokens", 9)
    page.get_by_label("Differences").check()
    page.get_by_role("button", name="+ Column").click()
    pick(page, 3, "pirate")
    column(page, 3).get_by_label("scale of pirate, as a number").fill("0.35")
    wait_until(
        lambda: state(page).get("c", [])[2:] == [[["pirate", 0.35]]], "the address to be written"
    )
    page.reload()
    other = tab(server)
    asked: list[str] = []
    other.page.on("request", lambda request: asked.append(request.url))
    opened = other.open(page.url.removeprefix(f"{server.url}/"))
    for one in (page, opened):
        expect(one.get_by_label("Prompt", exact=True)).to_have_value("ünd 東京 👩‍🌾 'quoted'")
        expect(one.get_by_label("Differences")).to_be_checked()
        expect(column(one, 3).get_by_role("combobox")).to_have_value("pirate")
        expect(column(one, 3).get_by_role("slider")).to_have_value("0.35")
        expect(one.locator("#settings summary")).to_contain_text(
            "greedy · at most 9 tokens · seed 7"
        )
        expect(one.get_by_text("No answer yet.")).to_have_count(3)
    assert not [url for url in asked if "/v1/" in url]
    run(opened)
    assert ended(opened, 3)


@pytest.mark.parametrize(
    "state",
    ["%%%", "bm8", "e30", "eyJjIjpbWzFdLFtbMl1dLHt9LDEsMl0sInMiOnsidG9wX3AiOiJ4In0sInQiOjR9"],
)
def test_an_address_of_nonsense_does_no_harm(server: Server, tab: Tabs, state: str) -> None:
    page = tab(server).open(f"#/playground?s={state}")
    expect(page.get_by_role("button", name="Run")).to_be_visible()
    page.get_by_label("Message").fill("Hello")
    setting(page, "Most tokens", 5)
    run(page)
    assert ended(page, 1)


def test_a_chat_goes_on_in_each_column_with_its_own_answers(server: Server, tab: Tabs) -> None:
    one = tab(server)
    page = one.open()
    setting(page, "Temperature", 0)
    setting(page, "Most tokens", 6)
    page.get_by_label("System prompt").fill("Be brief.")
    run(page)
    first = [ended(page, 1), ended(page, 2)]
    with page.expect_request(lambda request: "legal" in (request.post_data or "")) as sent:
        page.get_by_label("Next message").fill("And tea?")
        page.keyboard.press("Control+Enter")
    assert sent.value.post_data_json["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How do I cook rice?"},
        {"role": "assistant", "content": first[1]},
        {"role": "user", "content": "And tea?"},
    ]
    assert ended(page, 1, 2) and ended(page, 2, 2)
    assert [ended(page, 1), ended(page, 2)] == first
    wait_until(lambda: len(state(page).get("t", [])) == 2, "the address to be written")
    address = page.url
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_text("No answer yet.")).to_have_count(2)
    # The address has what the user said; a run asks for all of it again.
    again = tab(server).open(address.removeprefix(f"{server.url}/"))
    expect(again.get_by_text("Not answered yet.")).to_have_count(4)
    run(again)
    assert [ended(again, 1, 2), ended(again, 2, 2)] != ["", ""]
    assert [ended(again, 1), ended(again, 2)] == first


def test_one_column_s_error_is_its_own(server: Server, tab: Tabs) -> None:
    one = tab(server)
    one.expected.append("status of 4")
    page = greedy(one)
    server.client.patch("/adapters/legal", json={"enabled": False}).raise_for_status()
    try:
        run(page)
        expect(column(page, 2).get_by_role("alert")).to_contain_text("legal")
        assert ended(page, 1)
        assert one.barriers() == []
    finally:
        server.client.patch("/adapters/legal", json={"enabled": True}).raise_for_status()
    run(page)
    assert ended(page, 2)
    expect(column(page, 2).get_by_role("alert")).to_have_count(0)


def test_a_server_that_is_full_says_when_to_come_back(server: Server, tab: Tabs) -> None:
    one = tab(server)
    one.expected.append("429")
    page = greedy(one)
    full = {"error": {"message": "Too many wait.", "code": "queue_full"}}
    page.route(
        "**/v1/completions",
        lambda route: route.fulfill(status=429, json=full, headers={"retry-after": "3"}),
    )
    run(page)
    expect(column(page, 1).get_by_role("alert")).to_have_text(
        "Too many wait. Try again in 3 seconds."
    )


def test_a_schema_is_kept_to_and_a_wrong_one_is_said(server: Server, tab: Tabs) -> None:
    one = tab(server)
    page = greedy(one, 40)
    setting(page, "JSON schema", '{"enum": ["yes"')
    expect(page.get_by_role("alert")).to_contain_text("This is not JSON")
    run(page)
    expect(page.get_by_label("JSON schema")).to_be_focused()
    expect(page.get_by_text("No answer yet.")).to_have_count(2)
    assert one.barriers() == []
    setting(page, "JSON schema", '{"enum": ["yes"]}')
    run(page)
    assert (ended(page, 1), ended(page, 2)) == ('"yes"', '"yes"')


def test_the_keyboard_alone_runs_and_stops(endless: Server, tab: Tabs) -> None:
    page = greedy(tab(endless), LONG // 4)
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("Control+Enter")
    expect(answer(page, 1)).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(page.get_by_role("status").filter(has_text="Answers: 2 stopped.")).to_be_visible()


def test_it_fits_a_phone_with_answers(server: Server, tab: Tabs) -> None:
    one = tab(server, viewport=PHONE, color_scheme="dark")
    page = one.open()
    page.get_by_label("Probabilities").check()
    page.get_by_label("Differences").check()
    page.get_by_role("button", name="+ Column").click()
    column(page, 2).get_by_role("button", name="+ Add to the sum").click()
    page.locator("#settings summary").click()
    setting(page, "Most tokens", 30)
    run(page)
    for number in (1, 2, 3):
        ended(page, number)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert one.barriers() == []
