"""The URL of a shared catalog, and its tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from lorry_adapters.errors import AdapterError, CatalogUnavailable, HomeUnusable
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.shared.database import Database
from lorry_adapters.registry.shared.shared_tables import SCHEMA, metadata
from support.adapter_files import layout


def test_the_tables_are_what_the_migrations_make(catalog_url: str) -> None:
    database = Database(catalog_url, SCHEMA)
    with database.transaction() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": SCHEMA.version_table}
        )
        assert compare_metadata(context, metadata) == []
    database.close()
    config = Config()
    config.set_main_option("script_location", str(SCHEMA.migrations))
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA.head]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///x",
        "nonsense",
        "mysql://u:secret@host/db",
        "postgresql://u:secret@:notaport/db",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(
    tmp_path: Path, url: str
) -> None:
    with pytest.raises(AdapterError) as refused:
        Registry(
            tmp_path / "home", layout(), max_rank=8, max_upload=1, max_host_bytes=1, catalog=url
        )
    assert isinstance(refused.value, HomeUnusable | CatalogUnavailable)
    assert "secret" not in refused.value.message


def test_no_database_no_start(tmp_path: Path) -> None:
    url = f"postgresql://u:secret@/db?host={tmp_path}"
    with pytest.raises(CatalogUnavailable) as refused:
        Registry(
            tmp_path / "home", layout(), max_rank=8, max_upload=1, max_host_bytes=1, catalog=url
        )
    assert "secret" not in refused.value.message
