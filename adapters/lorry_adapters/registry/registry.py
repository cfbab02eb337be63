"""The only access to adapters: add, change, acquire, remove.

A change goes to the disk and the catalog first, one at a time, and is durable before the
inventory in memory shows it. `acquire` and every look-up read only the inventory and never wait
for a disk.

Removal is unregister, drain, free. At once no new request gets the adapter, while running ones
keep it. When the last lease is released, its files, its host copy and (through `subscribe`) its
device copy are freed. Contents are counted by digest, so the same files under two names, or
added again during an older removal, stay as long as they are needed.

A stored adapter that cannot be served (files missing or changed, made for another base) stays
listed and raises AdapterBroken when it is requested. Uploading the same files again repairs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace as changed
from datetime import datetime, timedelta
from pathlib import Path
from typing import Unpack

from lorry_adapters.errors import (
    AdapterBroken,
    InvalidAdapter,
    Problem,
    Remedy,
    UnknownAdapter,
)
from lorry_adapters.lora.adapter_memory import AdapterMemory
from lorry_adapters.lora.adapter_size import AdapterSize
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.merge import Recipe
from lorry_adapters.lora.weights import AdapterWeights, WhyNever
from lorry_adapters.registry.archive import Upload
from lorry_adapters.registry.blobs import Blobs
from lorry_adapters.registry.follower import follow
from lorry_adapters.registry.host_cache import AdapterCache, HostCache, HostCacheStats
from lorry_adapters.registry.intake import Intake
from lorry_adapters.registry.inventory import Inventory
from lorry_adapters.registry.merges import Merges
from lorry_adapters.registry.names import check_name, check_scale, check_strength
from lorry_adapters.registry.policy import Policy
from lorry_adapters.registry.record import (
    MERGED,
    AdapterChoice,
    AdapterRecord,
    AdapterRef,
    Lease,
    VersionRecord,
)
from lorry_adapters.registry.record_writer import RecordWriter
from lorry_adapters.registry.retention import Retention
from lorry_adapters.registry.revision import (
    Changes,
    check_match,
    conflict,
    first_record,
    has_already,
    with_state,
    with_version,
)
from lorry_adapters.registry.sources import stored_upload, upload_from
from lorry_adapters.registry.startup_check import FILES_GONE, check_at_startup, fingerprint
from lorry_adapters.registry.storage import Storage
from lorry_adapters.registry.tarball import Tarball
from lorry_adapters.registry.unclaimed_contents import UnclaimedContent
from lorry_adapters.registry.weight_loader import Loader


class Registry:
    """Thread-safe. Everything that touches the disk blocks; acquire, get and records do not."""

    def __init__(
        self,
        home: Path,
        layout: BaseLayout,
        *,
        max_rank: int,
        max_upload: int,
        max_host_bytes: int,
        max_host_adapters: int | None = None,
        memory: AdapterMemory | None = None,
        why_never: WhyNever = lambda size: None,
        reserved_names: frozenset[str] = frozenset(),
        allowed_roots: tuple[Path, ...] = (),
        keep_unclaimed: timedelta = timedelta(days=7),
        words: bool = True,
        cache: AdapterCache | None = None,
        policy: Policy | None = None,
        catalog: str | None = None,
        retention: Retention | None = None,
        make_blobs: Callable[[Path], Blobs] = Blobs,
    ) -> None:
        """Open or create `home`, which no other process may use until `close`.

        `max_upload`: bytes of an adapter's unpacked files. `max_host_bytes`, `max_host_adapters`,
        `memory`: see `host_cache`. `why_never`: see `inspect`. `reserved_names`: the base's names.
        `allowed_roots`: folders that `upload_from` may read. `keep_unclaimed`: how long contents
        without an adapter are kept. `words`: see `Inventory`. `cache`: the engine's, if that is in
        another process. `catalog`: URL of a database that servers share. `retention`: for adapters
        that have none of their own.
        `make_blobs`: opens the contents of a home. Raises HomeUnusable, CatalogUnavailable.
        """
        self._reserved = reserved_names
        self._roots = allowed_roots
        self._subscribers: tuple[Callable[[str], None], ...] = ()
        self.policy = policy or Policy()
        self._inventory = Inventory(reserved_names, self._free, words=words, policy=self.policy)
        self.pinned = self._inventory.pinned
        self._merges = Merges(self._inventory)
        with ExitStack() as opened:
            self.storage = Storage(home, keep_unclaimed, catalog, fingerprint(layout), make_blobs)
            """The folder itself: its state, and what the start found there."""
            opened.callback(self.storage.close)
            self._blobs, self._ledger = self.storage.blobs, self.storage.ledger
            self._loader = Loader(layout, self.storage, self._inventory)
            self._cache: AdapterCache = cache or HostCache(
                self._loader.load,
                max_bytes=max_host_bytes,
                max_entries=max_host_adapters,
                memory=memory,
            )
            broken = check_at_startup(self._ledger, self._blobs, layout, max_rank)
            for record in self._ledger.adapters():
                self._inventory.show(record)
            for digest, why in broken.items():
                self._inventory.mark_broken(digest, why)
            self._cache.pin(self._inventory.pinned())
            self._writer = RecordWriter(
                self.storage,
                self._inventory,
                self.policy,
                reserved_names,
                retention or Retention(),
                lambda: self._cache.pin(self._inventory.pinned()),
            )
            self._intake = Intake(
                home, layout, self.storage, self._inventory, max_rank, max_upload, why_never
            )
            opened.callback(self._inventory.close)
            self.storage.begin(self._inventory)
            self._follower = follow(self.storage, self._inventory, self._cache, layout, max_rank)
            self._opened = opened.pop_all()

    # Changing

    def staging(self) -> AbstractContextManager[Path]:
        """Yield a private folder for an incoming file, deleted after the block. Raises StorageFull,
        HomeUnusable."""
        return self.storage.staging()

    def add(
        self,
        name: str,
        upload: Upload,
        *,
        scale: float | None = None,
        enabled: bool | None = None,
        pinned: bool | None = None,
        description: str | None = None,
        replace: bool = False,
    ) -> tuple[AdapterRecord, bool]:
        """Verify and store an adapter. Return its record, and True if something was created.

        If `name` has this content already, nothing changes, the other arguments are ignored (use
        `patch`), and damaged files are repaired. Other content raises AdapterConflict, or with
        `replace` becomes the next version, which is current at once and keeps the adapter's state
        except for the given arguments.
        """
        self.policy.check_name(check_name(name, self._reserved))
        if scale is not None:
            scale = check_scale(scale)
        with self._intake.staged(upload) as new, self.storage.changing():
            old = self._inventory.find(name)
            if old is None:
                self._writer.check_free(name)
                record = first_record(name, new)
            elif has_already(old, new.digest):
                self._intake.publish(new)
                return old, False
            elif not replace:
                raise conflict(old, new.digest)
            else:
                record = with_version(old, new, self._ledger.next_version(name))
            record = with_state(record, enabled, scale, pinned, description, record.current)
            self._intake.publish(new)
            return self._writer.save(record, new.stored), True

    def upload_from(self, source: Path) -> Upload:
        """Return a PEFT folder under an allowed root, for `add`. Raises ForbiddenSource."""
        return upload_from(source, self._roots)

    def put(self, name: str, upload: Upload, *, if_match: str | None = None) -> AdapterRecord:
        """Add a new current version to an existing adapter, unless it has this content already.
        Raises DigestMismatch if `if_match` is not the current digest."""
        check_match(self._writer.own(name), if_match)
        with self._intake.staged(upload) as new, self.storage.changing():
            # Looked up again: another change may have happened while the upload was read.
            old = self._writer.own(name)
            check_match(old, if_match)
            self._intake.publish(new)
            if has_already(old, new.digest):
                return old
            record = with_version(old, new, self._ledger.next_version(name))
            check_strength(name, record.current, record.scale)
            return self._writer.save(record, new.stored)

    def patch(
        self, name: str, *, if_match: str | None = None, **changes: Unpack[Changes]
    ) -> AdapterRecord:
        """Change an adapter, or what an alias means: `RecordWriter.patch`."""
        return self._writer.patch(name, if_match, changes)

    def remove(self, name: str, *, version: int | None = None) -> None:
        """Remove an adapter, a version or an alias: `RecordWriter.remove`."""
        self._writer.remove(name, version)

    def retire(self, now: datetime | None = None) -> None:
        """Remove the versions that are no longer kept: `RecordWriter.retire`."""
        self._writer.retire(now)

    def recover(self, digest: str, name: str | None = None) -> AdapterRecord:
        """Make an adapter of a content without an owner, verified like a new upload.

        Without `name` it is named by its digest. Raises UnknownAdapter if there is no such content,
        and what `add` raises.
        """
        if digest not in {content.digest for content in self.unclaimed(in_store=True)}:
            text = f"no stored content {digest[:80]!r} is without an adapter"
            raise UnknownAdapter(text, param="digest")
        with self._inventory.admitting(digest):
            if not (self._blobs.intact(digest) or self._blobs.fetch(digest)):
                raise InvalidAdapter([f"the stored files {digest} were changed on disk"])
            files = stored_upload(self._blobs.folder(digest))
            record, _ = self.add(name or f"recovered-{digest.partition(':')[2][:12]}", files)
        return record

    # Asking

    def get(self, name: str) -> AdapterRecord:
        """Return the record as a name or an alias means it. Raises UnknownAdapter."""
        return self._inventory.get(name)

    def resolve(self, choice: AdapterChoice) -> tuple[AdapterRecord, VersionRecord]:
        """Return the adapter and the version that `acquire` would take, even if it is disabled.
        Raises UnknownAdapter, InvalidSelection."""
        return self._inventory.resolve(choice)

    def shows(self, record: AdapterRecord, alias: str) -> bool:
        """Return whether the caller may know this alias of an adapter that it sees."""
        return self._inventory.shows(record, alias)

    def records(self) -> tuple[AdapterRecord, ...]:
        """All adapters, by name."""
        return self._inventory.records()

    def why_broken(self, digest: str) -> str | None:
        """Return what is wrong with a stored content and what to do, or None."""
        return self._inventory.why_broken(digest)

    def folder(self, digest: str) -> Path:
        """Return the folder of a held content, fetched if it is not here: `Blobs.present`."""
        return self._blobs.present(digest)

    def content(self, name: str, version: int | None = None) -> Tarball:
        """Return the files as a tar in chunks. Raises UnknownAdapter, AdapterBroken."""
        with self.files(name, version) as (found, folder):
            return Tarball(folder, found.digest)

    @contextmanager
    def files(self, name: str, version: int | None = None) -> Iterator[tuple[VersionRecord, Path]]:
        """Yield a version, enabled or not, and its folder, which stays during the block. Raises
        UnknownAdapter, and AdapterBroken if the files cannot be read in the block."""
        with self._inventory.holding_version(name, version) as found:
            try:
                yield found, self._blobs.present(found.digest)
            except (OSError, ValueError, InvalidAdapter) as error:
                text = f"adapter {name!r} (version {found.version}): {FILES_GONE}"
                raise AdapterBroken(text) from error

    def unclaimed(self, *, in_store: bool = False) -> tuple[UnclaimedContent, ...]:
        """Return the stored contents without an adapter or request; `recover` can restore each.
        `in_store`: also those that are only in the store. Raises StoreUnavailable."""
        elsewhere = self.storage.unclaimed_in_store(self._inventory) if in_store else ()
        with self.storage.writing():
            return (*self.storage.unclaimed(self._inventory.digests()), *elsewhere)

    def story(self) -> tuple[str, ...]:
        """Return lines for people about what the start found."""
        lines = [] if self._ledger.recovery is None else [self._ledger.recovery]
        if count := len(self.unclaimed()):
            text = f"stored files that no adapter has: {count}"
            lines.append(Problem(text, Remedy.ADOPT, count=count))
        return tuple(lines)

    def in_host_cache(self, digest: str) -> bool:
        return digest in self._cache

    def host_cache_stats(self) -> HostCacheStats:
        return self._cache.stats()

    def open_leases(self) -> int:
        """Return the number of unreleased leases; 0 on an idle server."""
        return self._inventory.leases()

    # Using

    def acquire(self, choices: Sequence[AdapterChoice]) -> Lease:
        """Acquire all of `choices` at once, or none. No I/O. Raises UnknownAdapter,
        AdapterDisabled, AdapterBroken, InvalidScale, InvalidSelection (more than MAX_SELECTION, the
        same content twice, or virtual tokens of two)."""
        lease = self._inventory.acquire(choices)
        self._blobs.touch([ref.digest for ref in lease.refs])
        return lease

    def virtual_tokens(self, choices: Sequence[AdapterChoice]) -> int:
        """Return the positions that `choices` take before a prompt; unknown adapters take none."""
        return self._inventory.virtual_tokens(choices)

    def merged(
        self, parts: Sequence[tuple[AdapterChoice, float]], recipe: Recipe
    ) -> tuple[AdapterChoice, tuple[AdapterRef, ...]]:
        """Merge several adapters, each at its weight. Return the choice to acquire and its parts.

        A weight multiplies the trained strength; default scales do not count. The merged content
        is kept for a while (`merges`). Raises what `acquire` raises for the parts, InvalidAdapter
        if they cannot be merged, ToolError for a bad weight, and StorageFull.
        """
        lease = self.acquire([changed(choice, scale=1.0) for choice, _ in parts])
        try:
            weighed = [(ref, weight) for ref, (_, weight) in zip(lease.refs, parts, strict=True)]
            for ref, weight in weighed:
                self.policy.check_scale(ref.name, weight)
            key = recipe.key([(ref.digest, weight) for ref, weight in weighed])
            digest = self._merges.digest(key, lambda: self._published(weighed, recipe))
            return AdapterChoice(MERGED, digest=digest), lease.refs
        finally:
            lease.release()

    def weights(self, digest: str) -> AdapterWeights:
        """Return a content's weights from the host cache, or from disk if their digest is right.
        Call it with a lease on `digest`. Concurrent calls share one load. Raises AdapterBroken."""
        # Otherwise a removal could free the files during a load and miss the host copy.
        with self._inventory.holding(digest):
            assert isinstance(self._cache, HostCache), "the engine's process has its own"
            return self._cache.get(digest)

    def size_of(self, digest: str) -> AdapterSize:
        """Return what a content's memory depends on, from its header. Call it with a lease on
        `digest`. Raises AdapterBroken."""
        with self._inventory.holding(digest):
            return self._loader.size(digest)

    def mark_broken(self, digest: str, why: str) -> AdapterBroken:
        """Refuse a held content until the same files are uploaded again or the server restarts.
        Return the error for the requests that hold it. No I/O."""
        why = Problem.within(f"{why}; upload it again, or another version", why)
        error = self._inventory.mark_broken(digest, why)
        self._cache.discard(digest)
        return error

    def subscribe(self, gone: Callable[[str], None]) -> None:
        """Call `gone(digest)` when a content has no version and no lease left.

        It is called under the registry's lock, in order, by the thread that released the last
        lease. It must return at once, must not call the registry, and must not raise."""
        with self.storage.lock:
            self._subscribers = (*self._subscribers, gone)

    def subscribe_to_versions(self, lost: Callable[[str, int], None]) -> None:
        """Call `lost(name, version)` when an adapter that stays loses a version, or loses any at
        another server. As `subscribe`, but one subscriber."""
        self._writer.lost = self.storage.on_lost = lost

    def close(self) -> None:
        """Release the home folder. A lease released later frees nothing; the next start does."""
        self._follower.close()
        with self.storage.lock:
            self._opened.close()

    # Within

    @contextmanager
    def _published(
        self, parts: Sequence[tuple[AdapterRef, float]], recipe: Recipe
    ) -> Iterator[str]:
        with self._intake.merged(parts, recipe) as new:
            with self.storage.writing():
                self._intake.publish(new)
            yield new.digest

    def _free(self, digest: str) -> None:
        self.storage.free(digest)
        self._cache.discard(digest)
        for gone in self._subscribers:
            gone(digest)
