"""Runs the migrations on the connection that `access_database` passes."""

from __future__ import annotations

from alembic import context

from lorry.access.access_tables import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=SCHEMA.version_table,
    # SQLite can change few things of a table in place.
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
