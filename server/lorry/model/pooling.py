"""Rows whose hidden states are the answer: embeddings, and the scores of classifiers."""

from __future__ import annotations

from torch import nn

from lorry.core import Batch, Pooling, RowResult
from lorry.model.inputs import build_inputs
from lorry.model.path_set import PathSet
from lorry.model.placement import Placement


def pool(batch: Batch, paths: PathSet, placement: Placement) -> list[RowResult]:
    """A vector for each row, in the batch's order. The adapters lie in the general path's slots.

    Of MEAN the vector is the sum over the row's tokens, of a classifier its scores.
    """
    inputs = build_inputs(
        batch,
        block_size=paths.cache.block_size,
        dtype=paths.dtype,
        device=paths.pooled.inputs_on,
        digest_of=placement.digest_of,
    )
    paths.virtual_tokens.fill(inputs.attention)
    hidden_KH = paths.pooled.hidden(inputs).float()
    results: dict[int, RowResult] = {}
    for place, index in enumerate(inputs.order):
        row = batch.rows[index]
        first, count = inputs.wanted[place]
        # Of one token, or of a part of a mean.
        vector_H = hidden_KH[first : first + count].sum(0)
        if row.pooling is Pooling.CLASSIFY:
            weight_LH, bias_L = placement.score_of(row.adapters)
            vector_H = nn.functional.linear(vector_H, weight_LH, bias_L)
        results[index] = RowResult(vector=tuple(vector_H.tolist()))
    return [results[index] for index in range(len(batch.rows))]
