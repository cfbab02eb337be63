"""Stored responses: for how long, how many bytes of them, and whose."""

from __future__ import annotations

from lorry.api.response_store import ResponseStore


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(store: ResponseStore, name: str, owner: str = "", size: int = 0) -> bool:
    """Stores one and says whether it was kept."""
    response = {"id": name, "store": None, "output": ["x" * size]}
    store.put(owner, response, [{"type": "message"}])
    assert response["store"] is (store.get(owner, name) is not None)
    return bool(response["store"])


def test_one_is_there_for_its_time() -> None:
    clock = Clock()
    store = ResponseStore(1 << 20, 10, clock=clock)
    assert kept(store, "a")
    clock.now = 5
    assert kept(store, "b")
    clock.now = 10
    assert store.get("", "a") is None
    found = store.get("", "b")
    assert found is not None
    assert found.answer()["id"] == "b" and found.given() == [{"type": "message"}]
    clock.now = 15
    assert store.get("", "b") is None
    assert store.bytes == 0
    assert not kept(ResponseStore(1 << 20, 0), "a")


def test_the_oldest_go_where_there_is_no_room() -> None:
    store = ResponseStore(10_000, 10, clock=Clock())
    assert all(kept(store, str(one), size=2000) for one in range(5))
    assert store.bytes <= 10_000
    assert [store.get("", str(one)) is not None for one in range(5)] == [False] * 2 + [True] * 3
    assert not kept(store, "large", size=20_000)
    assert store.get("", "4") is not None
    assert store.remove("", "4") and not store.remove("", "4")
    assert store.remove("", "2") and store.remove("", "3")
    assert store.bytes == 0


def test_nobody_sees_another_s() -> None:
    store = ResponseStore(10_000, 10, clock=Clock())
    assert kept(store, "a", owner="ann")
    assert store.get("bob", "a") is None and store.get("", "a") is None
    assert not store.remove("bob", "a")
    assert store.get("ann", "a") is not None


def test_a_later_state_takes_the_place_of_an_earlier() -> None:
    store = ResponseStore(10_000, 10, clock=Clock())
    assert kept(store, "a", size=2000)
    before = store.bytes
    assert kept(store, "a", size=2000) and store.bytes == before
    assert not kept(store, "a", size=20_000)
    assert store.bytes == 0
