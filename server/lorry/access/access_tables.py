"""The tables of keys and of the audit, as the newest migration leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

from lorry_adapters.registry.shared.database import Schema

SCHEMA: Final = Schema(Path(__file__).with_name("migrations"), "access_version", "0002")

metadata = MetaData()

# One row: counts the changes of keys.
state = Table("access_state", metadata, Column("revision", BigInteger, nullable=False))

keys = Table(
    "keys",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("digest", LargeBinary(32), nullable=False),
    # The digest before the last rotation, and the time (seconds since 1970) until which it counts.
    Column("old_digest", LargeBinary(32)),
    Column("old_until", Float),
    Column("scopes", JSON, nullable=False),
    Column("adapters", JSON(none_as_null=True)),
    Column("limits", JSON, nullable=False),
    Column("description", String, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("key_id", String(12), nullable=False),
    Column("key_name", String(128), nullable=False),
    Column("address", String(100), nullable=False),
    Column("action", String(40), nullable=False),
    Column("kind", String(10), nullable=False),
    Column("name", String(128), nullable=False),
    Column("digest_before", String(80)),
    Column("digest_after", String(80)),
    Column("detail", JSON, nullable=False),
    Index("audit_by_name", "kind", "name"),
    # SQLite would give a number again that a lost last row had.
    sqlite_autoincrement=True,
)
