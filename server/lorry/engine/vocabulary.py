"""Adds an adapter's tokens to a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tokenizers import Tokenizer

from lorry_adapters.lora.words import AddedToken


def with_tokens(
    backend: Tokenizer, added: Sequence[AddedToken], vocab_size: int
) -> tuple[Tokenizer, tuple[AddedToken, ...]]:
    """Return a copy of `backend` that knows `added`, each by its own id, and the tokens that do not
    fit: beyond `vocab_size`, at the id of an ordinary token, or known by another id. If it knows
    all of them, `backend` itself is returned."""
    known = backend.get_added_tokens_decoder()
    added = [one for one in added if one.id not in known or known[one.id].content != one.content]
    if not added:
        # Most adapters: the trainer saved the base's own tokenizer beside them.
        return backend, ()
    tree = json.loads(backend.to_str())
    listed: dict[int, dict[str, Any]] = {token["id"]: token for token in tree["added_tokens"]}
    model = backend.get_vocab(with_added_tokens=False)
    ordinary = set(model.values()) - listed.keys()
    fits: list[AddedToken] = []
    left_out: list[AddedToken] = []
    for token in sorted(added, key=lambda token: token.id):
        elsewhere = model.get(token.content, token.id) != token.id
        fit = token.id < vocab_size and token.id not in ordinary and not elsewhere
        (fits if fit else left_out).append(token)
    while fits:
        made = _listing(tree, listed, fits)
        # The library numbers tokens that its model does not have consecutively.
        moved = [token for token in fits if made.token_to_id(token.content) != token.id]
        if not moved:
            return made, tuple(left_out)
        left_out += moved
        fits = [token for token in fits if token not in moved]
    return backend, tuple(left_out)


def _listing(
    tree: Mapping[str, Any], listed: Mapping[int, Mapping[str, Any]], fits: Sequence[AddedToken]
) -> Tokenizer:
    names = {token.content for token in fits}
    # Tokens known by another id and reserved tokens at their ids are left out.
    rest = {number: token for number, token in listed.items() if token["content"] not in names}
    whole = {**rest, **{token.id: asdict(token) for token in fits}}
    made = {**tree, "added_tokens": [whole[number] for number in sorted(whole)]}
    vocab = tree["model"].get("vocab")
    if isinstance(vocab, dict):
        # Some tokenizers have their reserved tokens in the model too.
        renamed = {
            listed[token.id]["content"]: token.content for token in fits if token.id in listed
        }
        vocab = {renamed.get(name, name): number for name, number in vocab.items()}
        made["model"] = {**tree["model"], "vocab": vocab}
    return Tokenizer.from_str(json.dumps(made))
