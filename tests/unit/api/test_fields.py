"""The table of fields that no route serves."""

from __future__ import annotations

from collections import Counter

import pytest

from lorry.api.fields import MESSAGES, TABLE, Strays, markdown_table, refusal

SERVED = ("adapter", "temperature", "max_tokens", "stop")


def said(name: str, value: object, how: Strays = Strays.HARMLESS) -> str | None:
    return refusal(name, value, f"at.{name}", SERVED, how)


@pytest.mark.parametrize("rows", [TABLE, MESSAGES])
def test_a_name_stands_in_one_row(rows: tuple[object, ...]) -> None:
    names = Counter(name for row in rows for name in row.names)  # type: ignore[attr-defined]
    assert [name for name, count in names.items() if count > 1] == []


def test_rows_are_what_the_documentation_says() -> None:
    table = markdown_table(served={"user_id"})
    assert "`messages[].annotations`" in table and "`user_id`" not in table
    for row in TABLE:
        for name in row.names:
            for value in row.neutral or ():
                assert said(name, value) is None, (name, value)
            refused = row.neutral is not None
            assert (said(name, "another") is not None) is refused, name


@pytest.mark.parametrize("value", [None, "", [], {}])
@pytest.mark.parametrize("name", ["anything", "best_of", "a_new_penalty", "adaptor"])
def test_what_asks_for_nothing_is_accepted(name: str, value: object) -> None:
    assert said(name, value) is said(name, value, Strays.LISTED) is None


@pytest.mark.parametrize(
    "name", ["tenant", "session", "ui_theme", "x", "client_version", "retries"]
)
def test_names_that_say_nothing_of_an_answer(name: str) -> None:
    assert said(name, 1) is None
    assert said(name, 1, Strays.LISTED) is not None


@pytest.mark.parametrize(
    "name",
    ["new_penalty", "maxLength", "top_q", "lora_weights", "model_id", "logit_mask", "min_q",
     "stop_words", "system", "image_url", "forced_bos_token_id", "samplerOrder", "context"],
)  # fmt: skip
def test_names_that_may_be_about_the_answer(name: str) -> None:
    assert f"at.{name}" in (said(name, 1) or "")


@pytest.mark.parametrize(
    ("name", "meant"), [("temprature", "temperature"), ("max_token", "max_tokens")]
)
def test_names_misspelt(name: str, meant: str) -> None:
    assert said(name, 1) == f"unknown field at.{name}; did you mean {meant}?"
