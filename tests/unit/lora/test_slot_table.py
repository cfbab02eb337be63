"""Slots by example; every sequence of calls is in `property/test_slots`."""

from lorry_adapters.lora.slot_table import Claim, SlotTable


def filled(*digests: str, slots: int | None = None) -> SlotTable:
    table = SlotTable(slots or len(digests))
    for digest in digests:
        assert table.claim(digest) is not None
    return table


def test_slots_are_numbered_from_one_and_the_lowest_goes_first() -> None:
    table = filled("a", "b", slots=3)
    assert [table.slot_of(d) for d in "abc"] == [1, 2, None]
    table.forget("a")
    assert table.claim("c") == Claim(1, None)


def test_the_least_recently_pinned_is_evicted() -> None:
    table = filled("a", "b", "c")
    for digest in "ab":
        table.pin(digest)
        table.unpin(digest)
    assert table.resident == ("c", "a", "b")
    assert table.claim("d") == Claim(3, "c")
    assert table.claim("e") == Claim(1, "a")
    assert table.resident == ("b", "d", "e")


def test_a_pinned_adapter_stays() -> None:
    table = filled("a", "b")
    table.pin("a")
    assert table.claim("c") == Claim(2, "b")
    table.pin("c")
    assert table.claim("d") is None
    assert table.resident == ("a", "c")
    table.unpin("a")
    assert table.claim("d") == Claim(1, "a")


def test_two_users_are_two_pins() -> None:
    table = filled("a")
    assert table.pin("a") == table.pin("a") == 1
    table.unpin("a")
    assert table.claim("b") is None
    table.unpin("a")
    assert table.claim("b") == Claim(1, "a")


def test_what_is_kept_is_not_evicted_for_its_companion() -> None:
    table = filled("a", "b")
    assert table.claim("c", keep=("a", "c")) == Claim(2, "b")
    assert table.claim("d", keep=("a", "c", "d")) is None


def test_what_users_pinned_leaves_last_and_leaves_all_the_same() -> None:
    table = filled("a", "b", "c")
    assert table.claim("d", last={"a", "b"}) == Claim(3, "c")
    assert table.claim("e", last={"a", "b", "d"}) == Claim(1, "a")
    assert table.claim("f", keep=("b",), last={"d"}) == Claim(1, "e")


def test_room_counts_free_and_evictable_slots_once() -> None:
    table = filled("a", "b", slots=3)
    table.pin("a")
    assert table.has_room_for(["a", "b", "x"])
    assert table.has_room_for(["x", "y"])
    assert not table.has_room_for(["x", "y", "z"])
    # "b" is wanted itself: its slot is no room for another.
    assert not table.has_room_for(["b", "x", "y"])
    assert table.has_room_for(["x", "x", "x", "y"])


def test_forgotten_while_pinned_it_goes_with_the_last_user() -> None:
    table = filled("a")
    table.pin("a")
    table.pin("a")
    table.forget("a")
    table.unpin("a")
    assert table.slot_of("a") == 1
    table.unpin("a")
    assert table.slot_of("a") is None
    assert table.claim("b") == Claim(1, None)


def test_pinned_again_it_is_no_longer_forgotten() -> None:
    table = filled("a")
    table.pin("a")
    table.forget("a")
    table.pin("a")
    table.unpin("a")
    table.unpin("a")
    assert table.slot_of("a") == 1


def test_forgetting_the_unknown_is_nothing() -> None:
    table = filled("a")
    table.forget("x")
    assert table.resident == ("a",)
