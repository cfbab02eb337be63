"""Records with many versions, without files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from lorry_adapters.registry.record import AdapterRecord, VersionRecord


def record_of(
    versions: int, made: Callable[[int], datetime] = lambda number: datetime(2026, 1, 1, tzinfo=UTC)
) -> AdapterRecord:
    """`legal` with that many versions, the last one current; `made` says when each was."""
    every = tuple(
        VersionRecord(
            version=number,
            digest=f"sha256:{number:064x}",
            peft_type="LORA",
            rank=4,
            target_modules=("q_proj",),
            parameters=1,
            bytes=1,
            base_model=None,
            created_at=made(number),
        )
        for number in range(1, versions + 1)
    )
    first = every[0].created_at
    return AdapterRecord("legal", True, 1.0, False, "", every[-1], every, first, first)
