"""Pairs for a module that the base computes in parts: one pair for each part.

A low-rank delta is B A x. If the module's outputs are now those of several modules side by
side, each of them needs the same A and its own rows of B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorry_adapters.lora.base import AliasPart

if TYPE_CHECKING:
    from lorry_adapters.lora.parts import LoraPair


def split(pair: LoraPair, alias: Sequence[AliasPart]) -> dict[str, LoraPair]:
    """By the base's own module: `pair` cut into the parts of `alias`, which share its memory.

    `b_OR` has a row for every output of the alias; who calls has checked that.
    """
    assert alias[0].start == 0 and alias[-1].stop == pair.b_OR.shape[0]
    return {
        part.module: type(pair)(pair.a_RI, pair.b_OR[part.start : part.stop], pair.scaling)
        for part in alias
    }
