"""Answers in the playground: tokens, differences, long ones, broken ones, and as a request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from page.conftest import Tabs
from support.playground import answer, column, ended, greedy, pick, run, setting
from support.server import Server

EVIL = '<img src="x" onerror="document.title=1">'


def frames(texts: list[str], *, finish: str | None = "stop", tokens: bool = False) -> str:
    """A stream of `/v1/completions` that a server might send."""
    events: list[dict[str, Any]] = []
    for at, text in enumerate(texts):
        top = {text: -0.5, " other": -1.5}
        found = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [top]}
        choice = {"index": 0, "text": text, "finish_reason": None}
        choice["logprobs"] = found if tokens else None
        events.append({"choices": [choice], "usage": {"completion_tokens": at + 1}})
    if finish:
        events.append({"choices": [{"index": 0, "text": "", "finish_reason": finish}]})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


def fed(page: Page, *streams: str) -> None:
    """Answers each column with a stream that was made here."""
    left = list(streams)

    def fulfil(route: Route) -> None:
        route.fulfill(body=left.pop(0), content_type="text/event-stream")

    page.route("**/v1/completions", fulfil)


def test_tokens_have_their_probabilities_and_alternatives(server: Server, tab: Tabs) -> None:
    one = tab(server)
    page = greedy(one)
    page.get_by_label("Probabilities").check()
    run(page)
    asked = {"prompt": "How do I cook rice?", "adapter": "legal", "temperature": 0}
    asked |= {"max_tokens": 12, "logprobs": 5}
    expected = server.client.post("/v1/completions", json=asked).json()["choices"][0]["logprobs"]
    ended(page, 2)
    # A token that is a part of a character has no letters of its own.
    tokens = answer(page, 2).locator(".token")
    places = [int(one.get_attribute("data-at") or "") for one in tokens.all()]
    box = page.get_by_role("tooltip")
    for shown in (2, len(places) - 1):
        tokens.nth(shown).hover()
        logprob = expected["token_logprobs"][places[shown]]
        expect(box).to_contain_text(f"log-probability {logprob:.2f}")
        expect(box.get_by_role("row")).to_have_count(5)
    assert one.barriers() == []
    page.mouse.move(0, 0)
    expect(box).to_be_hidden()
    # One stop of Tab for the text, the arrow keys within it.
    column(page, 2).get_by_role("region").focus()
    page.keyboard.press("Tab")
    expect(tokens.first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    logprob = expected["token_logprobs"][places[1]]
    expect(box).to_contain_text(f"log-probability {logprob:.2f}")
    expect(tokens.nth(1)).to_have_attribute("aria-describedby", "alternatives")
    page.keyboard.press("Tab")
    expect(column(page, 2).get_by_role("button", name="regenerate")).to_be_focused()


def test_an_answer_without_probabilities_says_how_to_get_them(server: Server, tab: Tabs) -> None:
    page = greedy(tab(server))
    run(page)
    ended(page, 1)
    page.get_by_label("Probabilities").check()
    hint = column(page, 1).get_by_text("Regenerate it to see its probabilities.")
    expect(hint).to_be_visible()
    column(page, 1).get_by_role("button", name="regenerate").click()
    expect(answer(page, 1).locator(".token")).not_to_have_count(0)
    expect(hint).to_be_hidden()


@pytest.mark.parametrize(
    ("base", "text", "marked"),
    [
        ("", "", []),
        ("a b c", "a b c", []),
        ("", "all new", ["all new"]),
        ("gone", "", []),
        ("a b c", "a x c", ["x"]),
        ("a b c", "a b c d", ["d"]),
        ("boil the rice", "first boil  the\nbrown rice", ["first", "brown"]),
        ("a b c a b b a", "c b a b a c", ["b", "c"]),
        ("rice. Now", "rice, Now", ["rice,"]),
    ],
)
def test_differences_are_the_words_that_were_added(
    server: Server, tab: Tabs, base: str, text: str, marked: list[str]
) -> None:
    page = tab(server).open()
    found = page.evaluate(
        """async ([base, text]) => {
          const path = new URL("ui/playground/differences.js", document.baseURI);
          const { differences } = await import(path);
          return differences(base, text).map(([start, end]) => text.slice(start, end));
        }""",
        [base, text],
    )
    assert found == marked


def test_differences_from_the_first_answer_are_marked(server: Server, tab: Tabs) -> None:
    page = greedy(tab(server))
    fed(page, frames(["Boil ", "the rice ", "gently."]), frames(["Boil ", "ye rice ", "gently."]))
    page.get_by_label("Differences").check()
    run(page)
    assert ended(page, 2) == "Boil ye rice gently."
    expect(answer(page, 2).locator("mark")).to_have_text(["ye"])
    expect(answer(page, 1).locator("mark")).to_have_count(0)
    page.get_by_label("Differences").uncheck()
    expect(answer(page, 2).locator("mark")).to_have_count(0)


@pytest.mark.parametrize("tokens", [False, True])
def test_twenty_thousand_tokens_are_only_ever_appended(
    server: Server, tab: Tabs, tokens: bool
) -> None:
    """The stream is made here: the tiny model's context ends long before."""
    page = greedy(tab(server))
    page.get_by_label("Probabilities").set_checked(tokens)
    column(page, 2).get_by_role("button", name="Remove").click()
    words = [f" word{at}" if at % 40 else "\n" for at in range(20_000)]
    fed(page, frames(words, tokens=tokens))
    page.evaluate(
        """() => {
          window.taken = 0;
          const count = (changes) => changes.forEach((one) => (taken += one.removedNodes.length));
          const all = { childList: true, subtree: true };
          new MutationObserver(count).observe(document.querySelector(".columns"), all);
          Object.assign(window, { drawn: 0, frames: 0 });
          const written = (changes) =>
            (drawn += changes.some((one) => one.target.parentElement?.closest(".writing")));
          const letters = { ...all, characterData: true };
          new MutationObserver(written).observe(document.querySelector(".columns"), letters);
          const frame = () => requestAnimationFrame(frame, (frames += 1));
          frame();
        }"""
    )
    run(page)
    if tokens:
        expect(answer(page, 1).locator(".token")).to_have_count(20_000)
    assert ended(page, 1) == "".join(words)
    blocks = answer(page, 1).locator(".block")
    assert blocks.count() > 20
    # One element a token at most, and drawn by frames: not once for each of the 20,000 events.
    elements = answer(page, 1).evaluate("(one) => one.getElementsByTagName('*').length")
    assert elements == blocks.count() + (20_000 if tokens else 0)
    assert page.evaluate("drawn <= 2 * frames + 5"), page.evaluate("[drawn, frames]")
    # A few parts of the page come and go as the answer begins and ends; what was written stays.
    assert page.evaluate("taken") < 20
    if tokens:
        answer(page, 1).locator(".token").first.focus()
        page.keyboard.press("End")
        expect(answer(page, 1).locator(".token").last).to_be_focused()
    page.get_by_label("Prompt", exact=True).fill("Next")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("Next")


def test_an_answer_that_breaks_off_stays_and_says_so(server: Server, tab: Tabs) -> None:
    page = greedy(tab(server))
    wrong = 'data: {"error": {"message": "The engine stopped.", "code": "engine"}}\n\n'
    fed(page, frames(["Boil ", "the"], finish=None), frames(["Fry"], finish=None) + wrong)
    run(page)
    expect(column(page, 1).get_by_role("alert")).to_contain_text("broke off")
    expect(answer(page, 1)).to_have_text("Boil the")
    expect(column(page, 2).get_by_role("alert")).to_contain_text("The engine stopped.")
    expect(answer(page, 2)).to_have_text("Fry")


def test_a_server_that_dies_leaves_what_it_wrote(
    long_model: Path, tmp_path_factory: pytest.TempPathFactory, tab: Tabs
) -> None:
    from support.patience import LONG
    from support.server import start

    server = start(long_model, tmp_path_factory.mktemp("dies") / "home")
    try:
        one = tab(server)
        one.expected.append("ERR_")
        page = one.open()
        page.get_by_role("button", name="Prompt", exact=True).click()
        setting(page, "Most tokens", LONG // 4)
        run(page)
        expect(answer(page, 1)).not_to_be_empty()
        server.process.kill()
        expect(column(page, 1).get_by_role("alert")).to_contain_text("does not answer")
        expect(answer(page, 1)).not_to_be_empty()
        expect(page.get_by_text("This page tries again")).to_be_visible()
    finally:
        server.process.kill()
        server.process.wait()
        server.client.close()


def test_text_of_others_stays_text(server: Server, tab: Tabs) -> None:
    one = tab(server)
    page = greedy(one)
    asked = server.client.patch("/adapters/legal", json={"description": EVIL})
    asked.raise_for_status()
    fed(page, frames([EVIL]), frames([EVIL]))
    page.get_by_label("Prompt", exact=True).fill(EVIL)
    page.get_by_label("Differences").check()
    run(page)
    assert ended(page, 1) == EVIL
    field = column(page, 2).get_by_role("combobox")
    field.click()
    expect(column(page, 2).get_by_role("option").filter(has_text="onerror")).to_be_visible()
    assert page.locator("main img").count() == 0


def test_an_adapter_is_found_among_two_hundred(
    started: Callable[..., AbstractContextManager[Server]],
    archives: Callable[[int], Path],
    tab: Tabs,
) -> None:
    with started() as server:
        for at in range(200):
            server.upload(f"adapter-{at:03}", archives(1)).raise_for_status()
        server.client.put(
            "/adapters/adapter-007", files={"file": ("b.zip", archives(2).read_bytes())}
        ).raise_for_status()
        aliases = {"aliases": {"best": 1}}
        server.client.patch("/adapters/adapter-007", json=aliases).raise_for_status()
        one = tab(server)
        page = greedy_of(one.open())
        options = column(page, 2).get_by_role("option")
        field = column(page, 2).get_by_role("combobox")
        field.click()
        expect(options.last).to_contain_text("more: type a part of the name")
        assert one.barriers() == []
        field.fill("007")
        expect(options).to_have_count(4)
        page.keyboard.press("Escape")
        expect(options).to_have_count(0)
        expect(field).to_have_value("adapter-000")
        for name in ("adapter-007@1", "best"):
            pick(page, 2, name)
            run(page)
            ended(page, 2)
            expect(column(page, 2).locator(".figures")).to_contain_text("adapter-007@1")


def greedy_of(page: Page) -> Page:
    page.get_by_role("button", name="Prompt", exact=True).click()
    setting(page, "Temperature", 0)
    setting(page, "Most tokens", 5)
    return page


@pytest.mark.parametrize("keys", [False, True])
def test_a_copied_request_gives_the_same_answer(
    started: Callable[..., AbstractContextManager[Server]],
    archives: Callable[[int], Path],
    tab: Tabs,
    keys: bool,
) -> None:
    with started(*(["--api-key", "sesame"] if keys else [])) as server:
        if keys:
            server.client.headers["authorization"] = "Bearer sesame"
        server.upload("legal", archives(1)).raise_for_status()
        one = tab(server)
        one.expected.append("401")
        page = one.open()
        if keys:
            page.get_by_label("Key").fill("sesame")
            page.keyboard.press("Enter")
        page.get_by_label("Message").fill('It\'s "quoted", ünd $HOME `x` \\n 東京')
        setting(page, "Temperature", 0)
        setting(page, "Most tokens", 8)
        column(page, 2).get_by_label("scale of legal, as a number").fill("0.75")
        run(page)
        shown = ended(page, 2)
        column(page, 2).get_by_role("button", name="copy as").click()
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_role("heading")).to_have_text("Column 2 as a request")
        assert one.barriers() == []
        environ = {**os.environ, "LORRY_API_KEY": "sesame", "PYTHONUTF8": "1"}

        def said(*command: str) -> str:
            done = subprocess.run(command, capture_output=True, env=environ, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout.decode()

        code = dialog.get_by_role("code")
        text = code.text_content() or ""
        assert ("LORRY_API_KEY" in text) == keys and "sesame" not in text
        body = json.loads(said("bash", "-c", text))
        assert body["choices"][0]["message"]["content"] == shown
        dialog.get_by_role("button", name="Python").click()
        text = code.text_content() or ""
        assert "sesame" not in text
        assert said(sys.executable, "-c", text) == f"{shown}\n"
        dialog.get_by_role("button", name="JavaScript").click()
        text = code.text_content() or ""
        assert "sesame" not in text
        assert f'"{server.url}/v1/chat/completions"' in text
        page.evaluate("window.process = { env: { LORRY_API_KEY: 'sesame' } }")
        with page.expect_console_message() as message:
            page.evaluate(f"async () => {{ {text} }}")
        assert message.value.text == shown
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
