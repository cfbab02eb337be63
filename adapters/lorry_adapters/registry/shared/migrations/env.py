"""Runs the migrations on the connection that `database.migrate` passes."""

from __future__ import annotations

from alembic import context

from lorry_adapters.registry.shared.shared_tables import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=SCHEMA.version_table,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
