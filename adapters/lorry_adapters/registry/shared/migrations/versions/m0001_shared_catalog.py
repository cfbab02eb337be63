"""The catalog that several servers share."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    state = op.create_table(
        "catalog_state",
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("removal", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(state, [{"revision": 0, "removal": 0}])
    op.create_table(
        "catalog_adapters",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
    )
    op.create_index("catalog_adapters_by_revision", "catalog_adapters", ["revision"])
    op.create_table(
        "catalog_versions",
        sa.Column(
            "name",
            sa.String(128),
            sa.ForeignKey("catalog_adapters.name", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("digest", sa.String(80), nullable=False),
    )
    op.create_index("catalog_versions_by_digest", "catalog_versions", ["digest"])
    op.create_table(
        "catalog_fits",
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("layout", sa.String(64), primary_key=True),
    )
    op.create_table(
        "catalog_leases",
        sa.Column("server", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("catalog_leases_by_digest", "catalog_leases", ["digest"])
    op.create_table(
        "catalog_unnamed",
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    )
