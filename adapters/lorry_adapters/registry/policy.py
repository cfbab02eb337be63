"""What a registry asks before it shows or changes an adapter. The server knows who asks; this
package does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lorry_adapters.registry.record import AdapterRecord


class Policy:
    """Permits everything. A subclass decides for whoever runs the current call.

    Thread-safe. Everything except `changing` is called under the registry's locks: it must return
    at once and must not call the registry.
    """

    def sees(self, name: str) -> bool:
        """Return whether the caller may know that an adapter `name` exists. To a caller who may
        not, it is unknown."""
        return True

    def check_name(self, name: str) -> None:
        """Raise an error if the caller may not add an adapter `name`, existing or not."""

    def check_scale(self, name: str, scale: float) -> None:
        """Raise an error if the caller may not use adapter `name` at this strength."""

    @contextmanager
    def changing(self, before: AdapterRecord | None, after: AdapterRecord | None) -> Iterator[None]:
        """Guard the block that stores a change: None is an adapter that does not exist. One change
        at a time. Raises an error, before the block, if the caller may not make it."""
        yield
