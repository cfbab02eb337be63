"""The tables of a shared catalog, as the newest migration leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Index,
    MetaData,
    String,
    Table,
)

from lorry_adapters.registry.shared.database import Schema

SCHEMA: Final = Schema(Path(__file__).with_name("migrations"), "catalog_version", "0001")

metadata = MetaData()

# One row. Whoever changes something locks it, so changes have an order, which `revision` counts.
state = Table(
    "catalog_state",
    metadata,
    Column("revision", BigInteger, nullable=False),
    # The revision of the last removal of an adapter, which leaves no row of its own.
    Column("removal", BigInteger, nullable=False),
)

adapters = Table(
    "catalog_adapters",
    metadata,
    Column("name", String(128), primary_key=True),
    # Of its last change.
    Column("revision", BigInteger, nullable=False),
    # As in a file of `records/`.
    Column("document", JSON, nullable=False),
    Index("catalog_adapters_by_revision", "revision"),
)

# What of a document says who uses a content.
versions = Table(
    "catalog_versions",
    metadata,
    Column(
        "name",
        String(128),
        ForeignKey("catalog_adapters.name", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("version", BigInteger, primary_key=True),
    Column("digest", String(80), nullable=False),
    Index("catalog_versions_by_digest", "digest"),
)

# Contents that were verified against a base's layout.
fits = Table(
    "catalog_fits",
    metadata,
    Column("digest", String(80), primary_key=True),
    Column("layout", String(64), primary_key=True),
)

# Contents that a server uses or is about to name, and until when that counts.
leases = Table(
    "catalog_leases",
    metadata,
    Column("server", String(64), primary_key=True),
    Column("digest", String(80), primary_key=True),
    Column("until", DateTime(timezone=True), nullable=False),
    Index("catalog_leases_by_digest", "digest"),
)

# Contents in the store that no record names, and when they may be deleted.
unnamed = Table(
    "catalog_unnamed",
    metadata,
    Column("digest", String(80), primary_key=True),
    Column("until", DateTime(timezone=True), nullable=False),
)
