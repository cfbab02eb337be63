"""The registered adapters and their users, in memory, under one lock.

`acquire` looks up, checks and counts in one step under that lock. In two steps, a removal could
slip in between: the look-up finds the digest, the removal sees no lease and frees it, and the
request then counts a lease on files and weights that are gone.

Freeing runs under the lock too. If it ran after, the same content could be added and acquired
again first, and the late "gone" would then take a slot away from the new request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from lorry_adapters.errors import (
    AdapterBroken,
    AdapterDisabled,
    AdapterError,
    InvalidSelection,
    Problem,
    Remedy,
    UnknownAdapter,
)
from lorry_adapters.lora.methods.method_table import is_prefix
from lorry_adapters.registry.contents import ContentIndex
from lorry_adapters.registry.name_index import NameIndex, NoSuchName
from lorry_adapters.registry.names import check_scale, check_strength
from lorry_adapters.registry.policy import Policy
from lorry_adapters.registry.record import (
    MAX_SELECTION,
    MERGED,
    AdapterChoice,
    AdapterRecord,
    AdapterRef,
    Lease,
    VersionRecord,
)
from lorry_adapters.registry.version_rules import main_digests, seen_as


class Inventory:
    """Thread-safe. Only `free` does I/O, and it must be quick."""

    def __init__(
        self,
        reserved: frozenset[str],
        free: Callable[[str], None],
        *,
        words: bool = True,
        policy: Policy | None = None,
    ) -> None:
        """`free` is called under the lock with each digest that is no longer used, and must not
        call back. `words`: false if adapters' own words are not used."""
        self._policy = policy or Policy()
        self._index = NameIndex(self._policy)
        self._reserved = reserved
        self._words = words
        self._free = free
        self._lock = threading.Lock()
        self._contents = ContentIndex()
        self._leases = 0
        self._closed = False

    def find(self, name: str) -> AdapterRecord | None:
        """Return the record, whatever the policy hides."""
        with self._lock:
            return self._index.find(name)

    def get(self, name: str) -> AdapterRecord:
        """Return the record as `name`, an adapter's or an alias, means it: `seen_as`."""
        with self._looking_up():
            return seen_as(self._index.record(name), name)

    def true(self, name: str) -> AdapterRecord:
        """Return the record that has this name or alias, as it is stored."""
        with self._looking_up():
            return self._index.record(name)

    def shows(self, record: AdapterRecord, name: str) -> bool:
        with self._lock:
            return self._index.shows(record, name)

    def every(self) -> tuple[AdapterRecord, ...]:
        """Return all records, whatever the policy hides."""
        with self._lock:
            return tuple(self._index.all())

    def resolve(self, choice: AdapterChoice) -> tuple[AdapterRecord, VersionRecord]:
        """Return the adapter and the version that a choice means."""
        with self._looking_up():
            return self._index.resolve(choice)

    def adapter_of(self, name: str) -> str | None:
        """Return the adapter that has this name or alias, whatever the policy hides."""
        with self._lock:
            return self._index.adapter_of(name)

    def held(self, digests: Iterable[str]) -> frozenset[str]:
        """Return those of the digests that leases hold."""
        with self._lock:
            contents = {digest: self._contents.find(digest) for digest in digests}
            return frozenset(d for d, one in contents.items() if one is not None and one.holds)

    def records(self) -> tuple[AdapterRecord, ...]:
        """All records that the policy shows, sorted by name."""
        with self._lock:
            names = self._index.names()
            return tuple(record for record in map(self._index.find, names) if record is not None)

    def pinned(self) -> frozenset[str]:
        """Return the digests that the names of pinned adapters mean, without their aliases."""
        with self._lock:
            return frozenset(
                digest for r in self._index.all() if r.pinned for digest in main_digests(r)
            )

    def digests(self) -> frozenset[str]:
        """Return the digests of all contents with an owner or a hold."""
        with self._lock:
            return frozenset(self._contents.digests())

    def in_use(self) -> frozenset[str]:
        """Return the digests of all contents with a hold."""
        with self._lock:
            return frozenset(self._contents.in_use())

    def unless_held(self, digest: str, do: Callable[[str], None]) -> bool:
        """Call `do(digest)` unless something holds the content. No hold begins meanwhile. Return
        whether it was called."""
        with self._lock:
            content = self._contents.find(digest)
            if self._closed or (content is not None and content.holds):
                return False
            do(digest)
            return True

    def only_of(self, name: str, versions: Sequence[VersionRecord]) -> list[str]:
        """Return the digests that only these versions of adapter `name` have."""
        owners = {(name, version.version) for version in versions}
        with self._lock:
            digests = {version.digest for version in versions}
            return [d for d in sorted(digests) if self._contents.named(d) <= owners]

    def leases(self) -> int:
        """Return the number of leases that were not yet released."""
        with self._lock:
            return self._leases

    def acquire(self, choices: Sequence[AdapterChoice]) -> Lease:
        """Look up, check and count all of `choices`, or none."""
        if len(choices) > MAX_SELECTION:
            raise InvalidSelection(
                f"{len(choices)} adapters in one request; at most {MAX_SELECTION} can be summed"
            )
        with self._looking_up():
            refs = tuple(self._ref(choice) for choice in choices)
            names: dict[str, str] = {}
            for ref in refs:
                if ref.digest in names:
                    raise InvalidSelection(_twice(names[ref.digest], ref.name))
                names[ref.digest] = ref.name
            prompts = [ref.name for ref in refs if ref.virtual_tokens and ref.scale != 0.0]
            if len(prompts) > 1:
                raise InvalidSelection(_two_prompts(prompts))
            for ref in refs:
                self._contents.hold(ref.digest)
            self._leases += 1
        return Lease(refs, partial(self._release, [ref.digest for ref in refs], [None]))

    def virtual_tokens(self, choices: Sequence[AdapterChoice]) -> int:
        """Return the positions that `choices` take before a prompt. Unknown ones take none."""
        with self._lock:
            return sum(map(self._virtual_tokens, choices))

    @contextmanager
    def holding(self, digest: str) -> Iterator[None]:
        """Hold an existing content during the block. Raises UnknownAdapter."""
        with self._lock:
            if self._contents.find(digest) is None:
                raise UnknownAdapter(f"no adapter has the content {digest}")
            self._contents.hold(digest)
        try:
            yield
        finally:
            self._give_back([digest])

    @contextmanager
    def admitting(self, digest: str) -> Iterator[None]:
        """Hold a content that may be new during the block, so that a removal of the same content
        that ends meanwhile does not free it before it has an owner."""
        with self._lock:
            self._contents.hold(digest)
        try:
            yield
        finally:
            self._give_back([digest])

    @contextmanager
    def holding_version(self, name: str, version: int | None) -> Iterator[VersionRecord]:
        """Look up a version (None: the current one) and hold its content during the block."""
        with self._looking_up():
            _, found = self._index.resolve(AdapterChoice(name, version))
            self._contents.hold(found.digest)
        try:
            yield found
        finally:
            self._give_back([found.digest])

    def show(self, record: AdapterRecord) -> None:
        """Replace the record of `record.name`. Versions that it no longer has lose their owner."""
        with self._lock:
            old = self._index.put(record)
            for version in record.versions:
                self._contents.own(version.digest, record.name, version.version)
            # Removed and added again by another server, it may have the same numbers.
            kept = {(version.version, version.digest) for version in record.versions}
            if old is not None:
                gone = [v for v in old.versions if (v.version, v.digest) not in kept]
                self._disown(record.name, gone)

    def forget(self, name: str) -> None:
        """Hide the adapter from new requests, and free contents that nothing else uses."""
        with self._lock:
            old = self._index.pop(name)
            self._disown(name, old.versions)

    def why_broken(self, digest: str) -> str | None:
        with self._lock:
            content = self._contents.find(digest)
            return None if content is None else content.broken

    def generation(self, digest: str) -> int:
        """Return the generation of a held content's files. Raises AdapterBroken if they are bad."""
        with self._lock:
            content = self._contents.known(digest)
            why = content.broken
            if why is not None:
                said = f"{self._owners(digest)} cannot be served: {why}"
                raise AdapterBroken(Problem.within(said, why))
            return content.generation

    def mark_broken(self, digest: str, why: str) -> AdapterBroken:
        """Refuse an existing content until it is repaired. Return the error to raise."""
        with self._lock:
            return self._mark(digest, why)

    def mark_files_broken(self, digest: str, why: str, generation: int) -> AdapterBroken | None:
        """Like `mark_broken`, but return None if the files were replaced since `generation`."""
        with self._lock:
            same = self._contents.known(digest).generation == generation
            return self._mark(digest, why) if same else None

    def mend(self, digest: str, *, came_in: bool) -> None:
        """Mark the files of a held content as good. `came_in`: they were stored just now."""
        with self._lock:
            content = self._contents.known(digest)
            content.ours = content.ours or came_in
            content.broken = None
            content.generation += 1

    def keep(self, digest: str, number: int) -> None:
        """Own a merged content that is held. `number` must be unique."""
        with self._lock:
            self._contents.own(digest, MERGED, number)

    def drop(self, digest: str, number: int) -> None:
        """Undo `keep`. The content is freed with its last lease."""
        with self._lock:
            if self._contents.disown(digest, MERGED, number):
                self._free_all([digest])

    def close(self) -> None:
        """Leases released from now on free nothing, as another server may use the home."""
        with self._lock:
            self._closed = True

    @contextmanager
    def _looking_up(self) -> Iterator[None]:
        """Hold the lock, except while searching for a similar name."""
        try:
            with self._lock:
                yield
        except NoSuchName as error:
            with self._lock:
                names = self._index.names()
            raise error.error(names) from None

    def _mark(self, digest: str, why: str) -> AdapterBroken:
        self._contents.known(digest).broken = why
        said = f"{self._owners(digest)} cannot be served: {why}"
        return AdapterBroken(Problem.within(said, why))

    def _ref(self, choice: AdapterChoice) -> AdapterRef:
        if choice.digest is not None:
            return self._merged(choice, choice.digest)
        record, version = self._index.resolve(choice)
        if not record.enabled:
            raise AdapterDisabled(
                Problem(
                    f"adapter {record.name!r} is disabled",
                    Remedy.ENABLE,
                    name=record.name,
                )
            )
        why = self._contents.known(version.digest).broken
        if not self._reserved.isdisjoint((record.name, choice.name)):
            # Stored under another base: as a model name it would now mean this base.
            why = "it has the base model's name; upload it under another name and remove this one"
        if why is not None:
            said = f"adapter {record.name!r} (version {version.version}) cannot be served: {why}"
            raise AdapterBroken(Problem.within(said, why))
        scale = record.scale
        if choice.scale is not None:
            scale = check_scale(choice.scale, f"the scale of adapter {record.name!r}")
        check_strength(record.name, version, scale)
        self._policy.check_scale(record.name, scale)
        return AdapterRef(
            record.name,
            version.version,
            version.digest,
            scale,
            virtual_tokens=version.virtual_tokens,
            is_prefix=is_prefix(version.peft_type),
            invocation=version.invocation,
            task_type=version.task_type,
            words=version.words if self._words else (),
        )

    def _merged(self, choice: AdapterChoice, digest: str) -> AdapterRef:
        content = self._contents.find(digest)
        if content is None:
            raise UnknownAdapter("the merged adapter is no longer kept; send the request again")
        why = content.broken
        if why is not None:
            said = f"the merged adapter cannot be served: {why}"
            raise AdapterBroken(Problem.within(said, why))
        scale = 1.0 if choice.scale is None else check_scale(choice.scale)
        return AdapterRef(choice.name, 0, digest, scale)

    def _virtual_tokens(self, choice: AdapterChoice) -> int:
        try:
            record, version = self._index.resolve(choice)
        except (NoSuchName, AdapterError):
            return 0
        if (record.scale if choice.scale is None else choice.scale) == 0.0:
            return 0
        return version.virtual_tokens

    def _owners(self, digest: str) -> str:
        owners = sorted(o for o in self._contents.known(digest).owners if self._policy.sees(o[0]))
        if not owners:
            return f"the adapter {digest}"
        return "adapter " + ", ".join(f"{name!r} (version {version})" for name, version in owners)

    def _release(self, digests: list[str], tickets: list[None]) -> None:
        with self._lock:
            # Two threads may both have seen the lease unreleased: one ticket, one release.
            if not tickets:
                return
            tickets.clear()
            self._leases -= 1
            self._free_all(self._contents.give_back(digests))

    def _give_back(self, digests: Collection[str]) -> None:
        with self._lock:
            self._free_all(self._contents.give_back(digests))

    def _disown(self, name: str, versions: Sequence[VersionRecord]) -> None:
        self._free_all(
            [v.digest for v in versions if self._contents.disown(v.digest, name, v.version)]
        )

    def _free_all(self, digests: Sequence[str]) -> None:
        if not self._closed:
            for digest in digests:
                self._free(digest)


def _twice(first: str, second: str) -> str:
    if first == second:
        return f"adapter {first!r} is given twice; give it once with the scale you mean"
    return (
        f"adapters {first!r} and {second!r} have the same content; "
        "give one of them, with the sum of the scales"
    )


def _two_prompts(names: Sequence[str]) -> str:
    return (
        f"adapters {' and '.join(map(repr, names))} each put virtual tokens before the prompt, "
        "and only one can; give one of them"
    )
