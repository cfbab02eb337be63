"""A trainer that pushes a version at every step: memory and disk stay flat. `support.pushes` does
the same with ten thousand."""

from __future__ import annotations

from pathlib import Path

from support.pushes import pushing


def test_many_pushes_leave_memory_and_disk_flat(tmp_path: Path) -> None:
    first, *_, last = pushing(tmp_path / "home", tmp_path, 120, keep=5, every=30)
    for taken in (first, last):
        assert (taken.versions, taken.contents) == (5, 5)
        # Graves are emptied by a thread.
        assert taken.blobs >= 5
    # Numbers get a digit more.
    assert last.record_bytes < 1.05 * first.record_bytes
    assert last.pushes == 120
