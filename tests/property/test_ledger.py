"""Whatever has happened to adapters: the catalog made from their files is the one that was."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lorry_adapters.registry.catalog import StoredContent
from lorry_adapters.registry.ledger import Ledger
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from support.registries import DAMAGES

names = st.sampled_from(["a", "A", "legal", "x" * 128, "a.b-c_d"])
times = st.datetimes(timezones=st.just(UTC))
counts = st.integers(0, 2**53)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

contents = st.tuples(
    *(
        st.builds(
            VersionRecord,
            version=st.just(0),
            digest=st.just(f"sha256:{letter * 64}"),
            peft_type=st.sampled_from(["LORA", "IA3", "PREFIX_TUNING"]),
            rank=counts,
            target_modules=st.lists(words).map(tuple),
            parameters=counts,
            bytes=counts,
            base_model=st.none() | words,
            created_at=times,
            task_type=words,
            virtual_tokens=counts,
            invocation=st.lists(counts).map(tuple),
            scalable=st.booleans(),
            warnings=st.lists(words).map(tuple),
        )
        for letter in "abc"
    )
)
"""What is known of a content is the same whoever has it."""
states = st.fixed_dictionaries(
    {
        "enabled": st.booleans(),
        "scale": st.floats(-16, 16),
        "pinned": st.booleans(),
        "description": words,
        "created_at": times,
        "updated_at": times,
    }
)
steps = st.lists(
    st.tuples(
        names,
        st.sampled_from(["version", "version", "state", "back", "forget version", "forget"]),
        st.integers(0, 2),
        states,
    ),
    max_size=12,
)


def change(ledger: Ledger, name: str, what: str, new: VersionRecord, state: dict) -> None:
    old = next((record for record in ledger.adapters() if record.name == name), None)
    content = StoredContent(new.digest, new.bytes + 8, "L")
    if old is None:
        version = replace(new, version=ledger.next_version(name))
        ledger.save(
            AdapterRecord(name=name, current=version, versions=(version,), **state), content
        )
    elif what == "version":
        version = replace(new, version=ledger.next_version(name))
        versions = (*old.versions, version)
        ledger.save(replace(old, current=version, versions=versions), content)
    elif what == "state":
        # When it was made is never changed.
        ledger.save(replace(old, **state | {"created_at": old.created_at}))
    elif what == "back":
        ledger.save(replace(old, current=old.versions[0]))
    elif what == "forget version":
        rest = tuple(v for v in old.versions if v == old.current or v != old.versions[0])
        ledger.save(replace(old, versions=rest))
    else:
        ledger.forget(name)


def all_of(ledger: Ledger) -> tuple[object, ...]:
    adapters = ledger.adapters()
    contents = {content.digest: content.stored_bytes for content in ledger.contents()}
    return adapters, contents, [ledger.next_version(record.name) for record in adapters]


@given(contents, steps, st.sampled_from(DAMAGES), st.booleans())
@settings(max_examples=50, deadline=None)
def test_the_files_tell_all_that_the_catalog_knew(
    made: tuple[VersionRecord, ...], history: list, damage: Callable[[Path], None], closed: bool
) -> None:
    home = Path(tempfile.mkdtemp())
    try:
        ledger = Ledger(home, lambda digest: True)
        for name, what, which, state in history:
            change(ledger, name, what, made[which], state)
        expected = all_of(ledger)
        if closed:
            ledger.close()
            left = home
        else:
            left = home / "killed"
            shutil.copytree(home, left)
            ledger.close()
        damage(left / "catalog.sqlite3")
        again = Ledger(left, lambda digest: False)
        assert all_of(again) == expected
        again.close()
        once_more = Ledger(left, lambda digest: False)
        assert all_of(once_more) == expected
        assert once_more.recovery is None
        once_more.close()
    finally:
        shutil.rmtree(home)
