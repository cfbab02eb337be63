"""What clients were told about adapters and keys, and what may be true of those whose last change
nobody heard the end of."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from support.mutations import Adapter, Key, State, adapter_of, after, drawn, send

ADMIN = "admin-of-tests"
"""The key of the settings, with which everything is asked."""

HEADERS = {"x-api-key": ADMIN}


@dataclass(frozen=True)
class Stream:
    """Names and contents that one client changes, and no other."""

    names: tuple[str, ...]
    contents: tuple[int, ...]


STREAMS = (
    Stream(("a", "b"), tuple(range(14))),
    Stream(("c", "key1", "key2"), tuple(range(14, 24))),
)
CONTENTS = 24


class Believed:
    """Thread-safe for clients of different streams."""

    def __init__(self, digests: Sequence[str], archives: Sequence[Path]) -> None:
        self._digests, self._archives = digests, archives
        names = [name for stream in STREAMS for name in stream.names]
        self.possible: dict[str, list[State]] = {name: [None] for name in names}
        """By name; the second state has the change that nobody heard the end of."""
        self.made = dict.fromkeys(names, 0)
        """Changes that were acknowledged."""
        self._idle = dict.fromkeys(names, 0)
        """Of those that changed nothing; a weight alone may be another."""
        self.unheard = dict.fromkeys(names, 0)
        self.made_by_kind: dict[str, int] = {}
        self._audited = dict.fromkeys(names, 0)
        self._last_entry = 0

    def run(
        self,
        stream: Stream,
        dice: random.Random,
        client_for: Callable[[str], httpx.Client],
        going_on: Callable[[], bool],
    ) -> None:
        """Change until `going_on` is false, or a change's end is not heard."""
        while going_on():
            name = dice.choice(stream.names)
            (state,) = self.possible[name]
            free = self._free(stream)
            if state is None and not free:
                continue
            mutation = drawn(dice, name, state, free)
            try:
                answer = send(client_for(name), mutation, self._archives)
            except httpx.TransportError:
                answer = None
            if answer is None or answer.status_code == 503:
                self.possible[name].append(after(mutation, state))
                self.unheard[name] += 1
                return
            assert answer.status_code in (200, 201, 204), (mutation, state, answer.text)
            text = answer.json().get("key") if answer.content else None
            new = after(mutation, state, text)
            if isinstance(new, Adapter) and answer.content and not mutation.alias:
                shown = adapter_of(answer.json(), self._digests, new.last)
                assert shown == new, (
                    f"{mutation} of\n     {state} made\n     {shown}, not\n     {new}"
                )
            self.possible[name] = [new]
            self.made[name] += new != state
            self._idle[name] += new == state
            self.made_by_kind[mutation.what] = self.made_by_kind.get(mutation.what, 0) + 1

    def _free(self, stream: Stream) -> list[int]:
        used = {
            content
            for name in stream.names
            for state in self.possible[name]
            if isinstance(state, Adapter)
            for content in state.versions.values()
        }
        return [content for content in stream.contents if content not in used]

    def settle(self, client: httpx.Client) -> None:
        """Find out which of the possible states are true. Raises AssertionError if none is."""
        listed = client.get("/adapters").raise_for_status().json()["adapters"]
        records = {record["name"]: record for record in listed}
        keys = client.get("/keys").raise_for_status().json()["keys"]
        records |= {key["name"]: key for key in keys}
        assert records.keys() <= self.possible.keys(), records.keys()
        for name in self.possible:
            self.possible[name] = [self._true(client, name, records.get(name))]

    def _true(self, client: httpx.Client, name: str, found: Mapping[str, Any] | None) -> State:
        for state in self.possible[name]:
            if name.startswith("key"):
                assert isinstance(state, Key) or state is None
                true = self._key(client, state, found)
                if true is not None:
                    return true
            elif isinstance(state, Adapter) and found is not None:
                if adapter_of(found, self._digests, state.last) == state:
                    assert found["broken"] is None, found
                    return state
            elif state is None and found is None:
                return None
        if found is not None and not name.startswith("key"):
            found = vars(adapter_of(found, self._digests, 0))
        may = "\n".join(map(str, self.possible[name]))
        raise AssertionError(f"{name} is\n{found}\nand must be one of\n{may}")

    def agrees(self, client: httpx.Client, name: str, state: State) -> bool:
        """Whether a server knows that state of a name."""
        kind = "keys" if name.startswith("key") else "adapters"
        answer = client.get(f"/{kind}/{name}")
        if state is None or (isinstance(state, Key) and not state.exists):
            return answer.status_code == 404
        if answer.status_code != 200:
            return False
        if isinstance(state, Key):
            return self._key(client, state, answer.json()) is not None
        return adapter_of(answer.json(), self._digests, state.last) == state

    def _key(
        self, client: httpx.Client, state: Key | None, found: Mapping[str, Any] | None
    ) -> Key | None:
        """What is true if it is `state`. None if it is another."""
        state = state or Key(exists=False)
        if state.exists != (found is not None):
            return None
        if found is not None:
            shown = frozenset(found["scopes"]), found["limits"]["requests_per_minute"]
            if shown != (state.scopes, state.rate):
                return None
        # Texts are asked only when the rest is right: an unheard rotation changes them alone.
        taken = {text for text in state.good | state.bad if _taken(client, text)}
        return state if taken == state.good else None

    def owned(self) -> set[str]:
        """Digests of all versions."""
        return {
            self._digests[content]
            for (state,) in self.possible.values()
            if isinstance(state, Adapter)
            for content in state.versions.values()
        }

    def adapters(self) -> dict[str, Adapter]:
        found = {name: state for name, (state,) in self.possible.items()}
        return {name: state for name, state in found.items() if isinstance(state, Adapter)}

    def digest(self, content: int) -> str:
        return self._digests[content]

    def check_audit(self, client: httpx.Client) -> None:
        """Every change that was acknowledged has its entry; of the others some have."""
        entries, before = [], None
        while True:
            query = {"limit": 1000} | ({} if before is None else {"before": before})
            page = client.get("/audit", params=query).raise_for_status().json()
            entries += [entry for entry in page["entries"] if entry["id"] > self._last_entry]
            before = page["next"]
            if before is None or before <= self._last_entry:
                break
        self._last_entry = max([self._last_entry, *(entry["id"] for entry in entries)])
        for entry in entries:
            if entry["address"]:
                self._audited[entry["name"]] += 1
        for name, count in self._audited.items():
            most = self.made[name] + self.unheard[name] + self._idle[name]
            assert self.made[name] <= count <= most, (name, self.made[name], count, most)


def _taken(client: httpx.Client, text: str) -> bool:
    status = client.get("/adapters", headers={"x-api-key": text}).status_code
    assert status in (200, 401), status
    return status == 200


def check_answers(
    client: httpx.Client,
    believed: Believed,
    expected: Callable[[str, Collection[Mapping[str, Any]], int], list[int]],
    dice: random.Random,
) -> int:
    """Ask every enabled adapter by one of its names, and compare with what is right for what the
    answer reports. Return how many."""
    asked = 0
    for name, adapter in believed.adapters().items():
        if not adapter.enabled:
            continue
        version = dice.choice(sorted(adapter.versions))
        for spec in (name, f"{name}@{version}", *adapter.aliases):
            parameters = {"max_new_tokens": 4, "details": True, "ignore_eos_token": True}
            body = {"inputs": "once upon", "adapter": spec, "parameters": parameters}
            answer = client.post("/generate", json=body)
            assert answer.status_code == 200, (spec, answer.text)
            (used,) = answer.json()["adapters"]
            may = {version} if spec == f"{name}@{version}" else adapter.meaning(spec)
            assert used["version"] in may and used["scale"] == adapter.scale, (spec, used, adapter)
            assert used["digest"] == believed.digest(adapter.versions[used["version"]])
            tokens = [token["id"] for token in answer.json()["details"]["tokens"]]
            assert tokens == expected("once upon", [used], 4), (spec, used)
            asked += 1
    return asked
