"""The catalog's tables, as a list of migrations."""

from __future__ import annotations

# Entry n takes a file from schema n to schema n + 1; only ever appended to.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE adapters (
            name TEXT PRIMARY KEY,
            current INTEGER NOT NULL,
            last_version INTEGER NOT NULL,
            enabled INTEGER NOT NULL,
            scale REAL NOT NULL,
            pinned INTEGER NOT NULL,
            description TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL)""",
        """CREATE TABLE contents (
            digest TEXT PRIMARY KEY,
            peft_type TEXT NOT NULL,
            rank INTEGER NOT NULL,
            target_modules TEXT NOT NULL,
            parameters INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            base_model TEXT,
            stored_bytes INTEGER NOT NULL,
            layout TEXT NOT NULL)""",
        """CREATE TABLE versions (
            name TEXT NOT NULL REFERENCES adapters (name) ON DELETE CASCADE,
            version INTEGER NOT NULL,
            digest TEXT NOT NULL REFERENCES contents (digest),
            created_at TEXT NOT NULL,
            PRIMARY KEY (name, version))""",
        "CREATE INDEX versions_by_digest ON versions (digest)",
    ),
    # Only causal language models' LoRAs were accepted until then, so the defaults are right.
    (
        "ALTER TABLE contents ADD COLUMN task_type TEXT NOT NULL DEFAULT 'CAUSAL_LM'",
        "ALTER TABLE contents ADD COLUMN virtual_tokens INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE contents ADD COLUMN invocation TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE contents ADD COLUMN scalable INTEGER NOT NULL DEFAULT 1",
    ),
    ("ALTER TABLE contents ADD COLUMN warnings TEXT NOT NULL DEFAULT '[]'",),
    (
        "CREATE TABLE home (revision INTEGER NOT NULL)",
        "INSERT INTO home (revision) VALUES (0)",
    ),
    # Until then only the two files of an adapter's folder were read.
    ("ALTER TABLE contents ADD COLUMN words TEXT NOT NULL DEFAULT '[]'",),
    # JSON of `version_rules`; empty for an adapter that never had any.
    ("ALTER TABLE adapters ADD COLUMN rules TEXT NOT NULL DEFAULT ''",),
)

SCHEMA_VERSION = len(MIGRATIONS)
