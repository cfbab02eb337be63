"""Every change of adapters and keys that a client can make, drawn at random, sent over HTTP, and
what a model of plain data has afterwards.

Each name has its own state, so clients that change different names can work side by side.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

Shares = Mapping[int, int]
"""Weights by version."""

SCALES = (0.25, 0.5, 1.0, -0.75, 2.0)
SCOPES = (["generate"], ["upload"], ["generate", "upload"])
OF_AN_ALIAS = ("move alias", "split alias", "remove alias")
"""Asked at the alias's own path."""
MOST_VERSIONS = 6
"""Beyond this an adapter is more often made smaller."""


@dataclass(frozen=True)
class Adapter:
    versions: Mapping[int, int]
    """Number -> index of the content."""
    current: int
    last: int
    """The highest number that was ever given. No answer tells it."""
    enabled: bool = True
    scale: float = 1.0
    pinned: bool = False
    split: Shares = field(default_factory=dict)
    aliases: Mapping[str, Shares] = field(default_factory=dict)
    keep: int | None = None

    def named(self) -> set[int]:
        """Versions that a name means."""
        return {self.current, *self.split, *(v for one in self.aliases.values() for v in one)}

    def meaning(self, name: str) -> set[int]:
        """Versions that requests for `name`, an alias or the adapter's own, may get."""
        return set(self.aliases.get(name) or self.split or [self.current])


@dataclass(frozen=True)
class Key:
    scopes: frozenset[str] = frozenset()
    rate: int | None = None
    good: frozenset[str] = frozenset()
    """Texts that are taken. One that nobody heard is not among them."""
    bad: frozenset[str] = frozenset()
    """Texts that are refused."""
    exists: bool = True


@dataclass(frozen=True)
class Mutation:
    what: str
    name: str
    """The adapter's or the key's."""
    content: int = 0
    """Index of an upload's."""
    version: int = 0
    alias: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of a form or a JSON body."""


State = Adapter | Key | None
"""None: there is no such adapter. A key's texts outlive it, so it only stops to exist."""


def drawn(dice: random.Random, name: str, state: State, free: Sequence[int]) -> Mutation:
    """A change that the server has to take. `free`: contents that nobody has."""
    if name.startswith("key"):
        return _of_key(dice, name, state)
    assert not isinstance(state, Key)
    if state is None:
        fields = {"scale": dice.choice(SCALES), "pinned": dice.random() < 0.2}
        return Mutation("add", name, dice.choice(free), fields=fields)
    versions, current = sorted(state.versions), state.current
    unnamed = sorted(state.versions.keys() - state.named())
    kinds = ["patch", "patch", "pin", "roll", "keep", "alias", "alias"]
    kinds += ["push", "push", "put"] * bool(free)
    kinds += ["remove version"] * bool(unnamed)
    kinds += ["split", "split"] * (len(versions) > 1)
    kinds += ["promote", "withdraw"] * 2 * bool(state.split)
    kinds += ["move alias", "split alias", "remove alias", "drop alias"] * bool(state.aliases)
    kinds += ["remove"] * (1 if len(versions) < MOST_VERSIONS else 6)
    what = dice.choice(kinds)
    if what in ("push", "put"):
        return Mutation(what, name, dice.choice(free))
    if what == "remove version":
        return Mutation(what, name, version=dice.choice(unnamed))
    alias = dice.choice(sorted(state.aliases)) if state.aliases else ""
    some = {version: dice.randint(1, 9) for version in dice.sample(versions, min(2, len(versions)))}
    fields: dict[str, Any] = {}
    if what == "patch":
        fields = {"enabled": dice.random() < 0.7, "scale": dice.choice(SCALES)}
    elif what == "pin":
        fields = {"pinned": not state.pinned}
    elif what == "roll":
        fields = {"version": dice.choice(versions)}
    elif what == "keep":
        fields = {"keep_versions": dice.choice([0, 2, 3, "default"])}
    elif what == "split":
        fields = {"split": some}
    elif what == "promote":
        fields = {"version": dice.choice(sorted(state.split))}
    elif what == "withdraw":
        fields = {"split": {}}
    elif what == "alias":
        # Two names move together, each to a version or a split.
        meanings = [dice.choice([some, {current: 1}]), {dice.choice(versions): 1}]
        fields = {"aliases": dict(zip([f"{name}-prod", f"{name}@next"], meanings, strict=True))}
    elif what == "drop alias":
        fields = {"aliases": {alias: None}, "scale": dice.choice(SCALES)}
    elif what == "move alias":
        fields = {"version": dice.choice(versions)}
    elif what == "split alias":
        fields = {"split": some}
    return Mutation(what, name, alias=alias if what in OF_AN_ALIAS else "", fields=fields)


def _of_key(dice: random.Random, name: str, state: State) -> Mutation:
    assert isinstance(state, Key) or state is None
    scopes, rate = dice.choice(SCOPES), dice.choice([None, 100_000, 200_000])
    fields = {"scopes": scopes, "limits": {"requests_per_minute": rate}}
    if state is None or not state.exists:
        return Mutation("create", name, fields=fields)
    what = dice.choice(["change", "rotate", "rotate", "revoke"])
    if what == "rotate":
        fields = {"keep_old": dice.choice([0, 0, 86_400])}
    return Mutation(what, name, fields={} if what == "revoke" else fields)


def after(mutation: Mutation, state: State, text: str | None = None) -> State:
    """What there is once `mutation` was made. `text`: of a key, if somebody heard it."""
    if mutation.what in ("create", "change", "rotate", "revoke"):
        assert isinstance(state, Key) or state is None
        return _key_after(mutation, state or Key(exists=False), text)
    assert not isinstance(state, Key)
    what, fields = mutation.what, dict(mutation.fields)
    if what == "add":
        return Adapter({1: mutation.content}, 1, 1, **fields)
    assert state is not None
    if what == "remove":
        return None
    if what in ("push", "put"):
        number = state.last + 1
        versions = {**state.versions, number: mutation.content}
        current = state.current if state.split else number
        return _retired(replace(state, versions=versions, last=number, current=current))
    if what == "remove version":
        rest = {v: c for v, c in state.versions.items() if v != mutation.version}
        return _retired(replace(state, versions=rest))
    if what in OF_AN_ALIAS:
        meaning = fields.get("split") or {fields.get("version"): 1}
        fields = {"aliases": {mutation.alias: None if what == "remove alias" else meaning}}
    aliases = {**state.aliases, **fields.pop("aliases", {})}
    state = replace(state, aliases={one: _plain(means) for one, means in aliases.items() if means})
    if "keep_versions" in fields:
        keep = fields.pop("keep_versions")
        state = replace(state, keep=None if keep == "default" else keep)
    if "version" in fields:
        state = replace(state, current=fields.pop("version"), split={})
    if "split" in fields:
        split = fields.pop("split")
        if split:
            old = state.current
            main = max(split, key=lambda version: (split[version], version == old, -version))
            state = replace(state, current=main)
        state = replace(state, split=split if len(split) > 1 else {})
    return _retired(replace(state, **fields))


def _plain(shares: Shares) -> Shares:
    """One version at any weight is that version."""
    return dict.fromkeys(shares, 1) if len(shares) == 1 else shares


def _retired(state: Adapter) -> Adapter:
    """Without the versions that its rule does not keep."""
    if not state.keep:
        return state
    kept = {*sorted(state.versions)[-state.keep :], *state.named()}
    return replace(state, versions={v: c for v, c in state.versions.items() if v in kept})


def _key_after(mutation: Mutation, state: Key, text: str | None) -> Key:
    new = frozenset() if text is None else frozenset({text})
    if mutation.what == "revoke":
        return Key(exists=False, bad=state.good | state.bad)
    if mutation.what == "rotate":
        if not mutation.fields["keep_old"]:
            return replace(state, good=new, bad=state.good | state.bad)
        # Of two old ones only the last is kept, and there is no telling which that was.
        return replace(state, good=new)
    limits = mutation.fields["limits"]
    made = Key(frozenset(mutation.fields["scopes"]), limits["requests_per_minute"])
    good = new if mutation.what == "create" else state.good
    return replace(made, good=good, bad=state.bad)


def send(client: httpx.Client, mutation: Mutation, archives: Sequence[Path]) -> httpx.Response:
    """Ask for it."""
    what, name, fields = mutation.what, mutation.name, dict(mutation.fields)
    if what in ("add", "push", "put"):
        path = archives[mutation.content]
        with path.open("rb") as file:
            files = {"file": (path.name, file)}
            if what == "put":
                return client.put(f"/adapters/{name}", files=files)
            form = {"name": name, "replace": "true", **fields}
            return client.post("/adapters", data=form, files=files)
    if what == "create":
        return client.post("/keys", json={"name": name, **fields})
    if what == "change":
        return client.patch(f"/keys/{name}", json=fields)
    if what == "rotate":
        return client.post(f"/keys/{name}/rotate", json=fields)
    if what == "revoke":
        return client.delete(f"/keys/{name}")
    if what == "remove version":
        return client.delete(f"/adapters/{name}", params={"version": mutation.version})
    target = mutation.alias or name
    if what in ("remove", "remove alias"):
        return client.delete(f"/adapters/{target}")
    return client.patch(f"/adapters/{target}", json=fields)


def adapter_of(record: Mapping[str, Any], digests: Sequence[str], last: int) -> Adapter:
    """An adapter as the server lists it."""

    def shares(meaning: int | Mapping[str, int]) -> Shares:
        if isinstance(meaning, int):
            return {meaning: 1}
        return {int(version): weight for version, weight in meaning.items()}

    return Adapter(
        {one["version"]: digests.index(one["digest"]) for one in record["versions"]},
        record["version"],
        last,
        record["enabled"],
        record["scale"],
        record["pinned"],
        shares(record["split"]),
        {alias: shares(meaning) for alias, meaning in record["aliases"].items()},
        record["keep_versions"],
    )
