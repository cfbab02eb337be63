"""A count of the changes of keys, by which servers notice each other's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    state = op.create_table("access_state", sa.Column("revision", sa.BigInteger, nullable=False))
    op.bulk_insert(state, [{"revision": 0}])
