"""What the C code trusts, looked at before it gets an address.

What would be an IndexError in Python is somebody else's memory there. `assert` does not do: it is
gone under `python -O`.
"""

from __future__ import annotations


class Unsafe(RuntimeError):
    """The compiled step was about to read or write what is not its own. A mistake of ours."""


def require(holds: bool, what: str) -> None:
    """Raises Unsafe with `what` must hold, unless it does."""
    if not holds:
        raise Unsafe(what)
