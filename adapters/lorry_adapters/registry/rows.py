"""Converts rows of the catalog's tables to records. Invalid ones raise ValueError, KeyError or
TypeError."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Final

from lorry_adapters.registry.record import AdapterRecord, VersionRecord, VersionRules
from lorry_adapters.registry.version_rules import check_rules, rules_from

VERSION_COLUMNS: Final = (
    "version, digest, peft_type, rank, target_modules, parameters, bytes, base_model, created_at,"
    " task_type, virtual_tokens, invocation, scalable, warnings, words"
)
VersionRow = tuple[
    int, str, str, int, str, int, int, str | None, str, str, int, str, int, str, str
]  # fmt: skip


def version_of(row: VersionRow) -> VersionRecord:
    version, digest, peft_type, rank, modules, parameters, size, base_model, created_at = row[:9]
    task_type, virtual_tokens, invocation, scalable, warnings, words = row[9:]
    return VersionRecord(
        version=version,
        digest=digest,
        peft_type=peft_type,
        rank=rank,
        target_modules=tuple(json.loads(modules)),
        parameters=parameters,
        bytes=size,
        base_model=base_model,
        created_at=datetime.fromisoformat(created_at),
        task_type=task_type,
        virtual_tokens=virtual_tokens,
        invocation=tuple(json.loads(invocation)),
        scalable=bool(scalable),
        warnings=tuple(json.loads(warnings)),
        words=tuple(json.loads(words)),
    )


ADAPTER_COLUMNS: Final = (
    "name, current, enabled, scale, pinned, description, created_at, updated_at, rules"
)
AdapterRow = tuple[str, int, int, float, int, str, str, str, str]


def adapter_of(row: AdapterRow, versions: tuple[VersionRecord, ...]) -> AdapterRecord:
    name, current, enabled, scale, pinned, description, created_at, updated_at, rules = row
    record = AdapterRecord(
        name=name,
        enabled=bool(enabled),
        scale=scale,
        pinned=bool(pinned),
        description=description,
        current={version.version: version for version in versions}[current],
        versions=versions,
        created_at=datetime.fromisoformat(created_at),
        updated_at=datetime.fromisoformat(updated_at),
        rules=rules_from(json.loads(rules)) if rules else VersionRules(),
    )
    check_rules(record)
    return record
