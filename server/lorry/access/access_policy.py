"""The registry's policy: what the current caller's key lets it see and change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from lorry.access import audit, caller
from lorry.access.api_key import KeyRecord
from lorry.access.audit import Audit
from lorry.errors import ForbiddenAdapter, KeyLimitExceeded
from lorry_adapters.registry.policy import Policy
from lorry_adapters.registry.record import AdapterRecord


class AccessPolicy(Policy):
    """Permits everything outside a request: that is the server itself."""

    def __init__(self) -> None:
        self._audit: Audit | None = None
        self._records: Callable[[], Sequence[AdapterRecord]] = tuple

    def connect(self, audit: Audit, records: Callable[[], Sequence[AdapterRecord]]) -> None:
        """`audit` gets every change from now on. `records`: all adapters that the caller sees."""
        self._audit, self._records = audit, records

    def sees(self, name: str) -> bool:
        key = _key()
        return key is None or key.sees(name)

    def check_name(self, name: str) -> None:
        key = _key()
        if key is not None and not key.sees(name):
            shown = ", ".join(key.adapters or ()) or "none"
            raise ForbiddenAdapter(
                f"key {key.name!r} may not have an adapter {name!r}; its adapters are {shown}"
            )

    def check_scale(self, name: str, scale: float) -> None:
        key = _key()
        if key is None or key.limits.max_scale is None or abs(scale) <= key.limits.max_scale:
            return
        raise KeyLimitExceeded(
            f"adapter {name!r} at scale {scale:g} is beyond {key.limits.max_scale:g}, the "
            f"max_scale of key {key.name!r}",
            param="scale",
        )

    @contextmanager
    def changing(self, before: AdapterRecord | None, after: AdapterRecord | None) -> Iterator[None]:
        key = _key()
        if key is not None and after is not None:
            if before is None or before.scale != after.scale:
                self.check_scale(after.name, after.scale)
            old = () if before is None else before.versions
            if after.versions[-1] not in old:
                self._check_upload(key, after, new=before is None)
        entry = audit.of_adapters(before, after)
        with nullcontext() if self._audit is None else self._audit.around(entry):
            yield

    def _check_upload(self, key: KeyRecord, after: AdapterRecord, *, new: bool) -> None:
        """Raise KeyLimitExceeded if the newest version of `after` is too much."""
        limits, rank = key.limits, after.versions[-1].rank
        if limits.max_rank is not None and rank > limits.max_rank:
            raise KeyLimitExceeded(
                f"the adapter has rank {rank}; {limits.max_rank} is the max_rank of key "
                f"{key.name!r}",
                param="file",
            )
        if limits.max_adapters is None and limits.max_adapter_bytes is None:
            return
        records = {one.name: one for one in self._records()} | {after.name: after}
        if new and limits.max_adapters is not None and len(records) > limits.max_adapters:
            raise KeyLimitExceeded(
                f"this would be adapter number {len(records)}; {limits.max_adapters} is the "
                f"max_adapters of key {key.name!r}: remove one first"
            )
        sizes = {
            version.digest: version.bytes
            for record in records.values()
            for version in record.versions
        }
        total = sum(sizes.values())
        if limits.max_adapter_bytes is not None and total > limits.max_adapter_bytes:
            raise KeyLimitExceeded(
                f"this would make {total} bytes of adapters; {limits.max_adapter_bytes} is the "
                f"max_adapter_bytes of key {key.name!r}: remove some first"
            )


def _key() -> KeyRecord | None:
    who = caller.current()
    return None if who is None else who.key
