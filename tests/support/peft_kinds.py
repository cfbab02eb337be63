"""Every kind of adapter that PEFT can put on a causal language model, by its name.

`peft_made.py` builds, fills and saves them; `matrix.py` says which of them are served on which
family.
"""

from __future__ import annotations

from collections.abc import Mapping

from support.kind import Kind
from support.lora_kinds import LORAS
from support.method_kinds import METHODS

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (*LORAS, *METHODS)}
NOT_BUILT: Mapping[str, str] = {
    "ADAMSS": "its start needs scikit-learn",
    "XLORA": "it routes between other adapters, which lie elsewhere on the disk",
}
"""Methods of PEFT without a kind here."""

PLAIN = KINDS["lora"]
"""What stands in every mixed batch."""
