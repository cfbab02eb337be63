"""Rows through modeling code that does not let us replace its attention: padded, in groups.

transformers hands such a model a cache object and a mask. Ours, made for each forward
pass, puts new keys and values in the same blocks that the other paths use and hands back
each row's whole past, so that the scheduler's blocks stay the only truth: a row that starts
over, a row that is gone and a block that changes hands need nothing here.

Every row lies at the right edge: its context ends in the last column, its new tokens are
the last of them. So there is never a hole between past and present, and it does not matter
whether the model takes positions, counts the mask, or measures distances (ALiBi,
arXiv:2108.12409) by columns. What is left over at the left is masked; it reads the row's
own first cell, because 0 x NaN is NaN, and its tokens carry no adapter.

Letters: B rows of a group, Q new tokens of the longest, L context of the longest,
H key/value heads, D head size, N cache rows, M new tokens of the group,
C columns with logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lorry.core import Row
from lorry.errors import UnsupportedModel
from lorry.model.base_loader import LoadedModel
from lorry.model.inputs import AttentionPlan, Inputs
from lorry.model.kv_cache import Cells, KVCache, LayerKV, LayerShape, Shapes
from lorry.model.logits import Logits
from lorry.model.plain_attention import choose_plain, is_plain
from lorry.model.reach import TOKENS, Reach, Watch, kept_of
from lorry.model.virtual_tokens import VirtualTokenSlots
from lorry_adapters.lora.layers import LoraModel
from lorry_adapters.lora.plan import Plan, joined

ATTENTION = "eager"
"""The one implementation that every model has, and that asks for masks in numbers, not
-inf: a column of padding that sees nothing stays a number. Another only where it is wrong."""

UNSUITED = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What modeling code raises with a cache that it was not made for."""

MAX_PADDING = 1.25
"""VirtualTokenSlots share a forward pass where padding makes at most this of their tokens."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that share a forward pass, as tensors."""

    ids_BQ: Tensor
    positions_BQ: Tensor
    mask_BL: Tensor
    """int64, 1 where a row has a token. Some models count it."""
    read_X: Tensor
    """int64 `[B * L]`, the cache row of each column."""
    write_M: Tensor
    """int64, the cache row of each new token."""
    place_M: Tensor
    """int64, where each new token lies among the B * Q."""
    columns: tuple[int, ...]
    """Of the Q, those whose logits are computed, ascending."""
    tokens: Mapping[int, int]
    """From a token of the packed row to its place among the B * Q."""
    logits: Mapping[int, tuple[int, int]]
    """From an index of `wanted_K` to (row, index in `columns`)."""

    @property
    def past(self) -> int:
        return self.mask_BL.shape[1] - self.ids_BQ.shape[1]


class _Paged(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, as transformers' modeling code asks for them."""

    is_sliding = False

    def __init__(self, kv: LayerKV, group: Group) -> None:
        super().__init__()
        self._kv, self._group = kv, group

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("the cache has all it needs")

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes `[B, H, Q, D]`, gives `[B, H, L, D]`."""
        return self._swap(self._kv.keys, key_states), self._swap(self._kv.values, value_states)

    def _swap(self, cells: Cells, new_BHQD: Tensor) -> Tensor:
        group = self._group
        new_MHD = new_BHQD.transpose(1, 2).flatten(0, 1)[group.place_M]
        cells.write(group.write_M, new_MHD)
        all_XHD = cells.read(group.read_X, new_BHQD.dtype)
        all_BLHD = all_XHD.view(*group.mask_BL.shape, *all_XHD.shape[1:])
        return all_BLHD.transpose(1, 2).contiguous()

    def get_seq_length(self) -> int:
        return self._group.past

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        assert query_length == self._group.ids_BQ.shape[1]
        return self._group.mask_BL.shape[1], 0

    def get_max_length(self) -> int:
        return -1


class PaddedModel:
    """The base with slots for adapters of every kind, some rows at a time."""

    def __init__(
        self, loaded: LoadedModel, cache: KVCache, lora: LoraModel, prompts: VirtualTokenSlots
    ) -> None:
        self._model = loaded.model
        self._cache = cache
        self._lora = lora
        self._prompts = prompts
        self._accepts = frozenset(inspect.signature(loaded.model.forward).parameters)
        self.name = "torch"
        self.inputs_on = loaded.device

    def run(self, inputs: Inputs) -> Logits:
        """Logits of the wanted tokens."""
        wanted = inputs.wanted_K.tolist()
        found: dict[int, Tensor] = {}
        for members in _groups(inputs.attention.rows):
            group = _group(inputs.attention, members, wanted)
            logits_BCV = self._forward(inputs, group)
            found.update((at, logits_BCV[b, c]) for at, (b, c) in group.logits.items())
        return Logits.of(torch.stack([found[at] for at in range(len(wanted))]))

    def hidden(self, inputs: Inputs) -> Tensor:
        """`[K, H]`, what the output head would see of the wanted tokens."""
        # The models that come here do nothing to logits after the head.
        with self._lora.tapping():
            return self.run(inputs).values_KV

    def _forward(self, inputs: Inputs, group: Group) -> Tensor:
        """`[B, C, V]`"""
        keeps = "logits_to_keep" in self._accepts
        (rows, width), columns = group.ids_BQ.shape, len(group.columns)
        body = moved(inputs.body, group.tokens, rows * width)
        arguments: dict[str, Any] = {
            "attention_mask": group.mask_BL,
            "past_key_values": Cache(
                layers=[_Paged(kv, group) for kv in self._cache.layers],
            ),
            "use_cache": True,
        }
        if "position_ids" in self._accepts:
            arguments["position_ids"] = group.positions_BQ
        columns_C = torch.tensor(group.columns, device=group.ids_BQ.device)
        head = body
        if keeps:
            arguments["logits_to_keep"] = columns_C
            places = {at: b * columns + c for at, (b, c) in group.logits.items()}
            head = moved(inputs.head, places, rows * columns)
        with self._lora.planned(body, head):
            arguments |= self._tokens(inputs, group)
            logits_BXV: Tensor = self._model(**arguments).logits
        return logits_BXV if keeps else logits_BXV[:, columns_C]

    def _tokens(self, inputs: Inputs, group: Group) -> dict[str, Tensor]:
        """Ids, and embeddings only where an adapter brings some."""
        if not any(run.first in group.tokens for run in inputs.virtual):
            return {"input_ids": group.ids_BQ}
        embeddings_BQH = self._model.get_input_embeddings()(group.ids_BQ)
        put_BQH = self._prompts.put(embeddings_BQH, inputs.virtual, group.tokens)
        return {"inputs_embeds": put_BQH}


def moved(plan: Plan, places: Mapping[int, int], count: int) -> Plan:
    """The part of `plan` that is about the tokens in `places`, which says where among `count`
    tokens each of them lies now."""
    runs = [(slot, places[t], 1, scale) for slot, t, scale in plan.pairs if t in places]
    return Plan(joined(runs), count, plan.dtype, plan.device)


def _groups(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Rows by index: the single tokens together, prompts with others of about their length."""
    counts = [len(row.token_ids) for row in rows]
    members: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: counts[index]):
        together = [*members, index]
        tokens = sum(counts[member] for member in together)
        if members and len(together) * counts[index] > MAX_PADDING * tokens:
            yield members
            members = []
        members.append(index)
    yield members


def _group(plan: AttentionPlan, members: Sequence[int], wanted: Sequence[int]) -> Group:
    """`wanted`: tokens of the packed row whose logits are needed."""
    firsts = np.cumsum([0, *(len(row.token_ids) for row in plan.rows)]).tolist()
    rows = [plan.rows[index] for index in members]
    counts = [len(row.token_ids) for row in rows]
    cells = [plan.cells_of(row) for row in rows]
    size, width, length = len(rows), max(counts), max(len(row_cells) for row_cells in cells)
    ids = np.zeros((size, width), dtype=np.int64)
    positions = np.zeros((size, width), dtype=np.int64)
    mask = np.zeros((size, length), dtype=np.int64)
    read = np.empty((size, length), dtype=np.int64)
    tokens: dict[int, int] = {}
    for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
        end = len(cells[b])
        ids[b, width - count :] = row.token_ids
        positions[b, width - count :] = range(row.start, end)
        mask[b, length - end :] = 1
        read[b, : length - end] = cells[b][0]
        read[b, length - end :] = cells[b]
        begin = firsts[members[b]]
        tokens.update((begin + n, (b + 1) * width - count + n) for n in range(count))
    mine = {at: divmod(tokens[token], width) for at, token in enumerate(wanted) if token in tokens}
    # Where nothing is wanted, the head gets a column all the same.
    columns = sorted({column for _, column in mine.values()} or {width - 1})

    def there(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(plan.device)

    return Group(
        ids_BQ=there(ids),
        positions_BQ=there(positions),
        mask_BL=there(mask),
        read_X=there(read.reshape(-1)),
        write_M=plan.write_T[there(np.array(list(tokens)))],
        place_M=there(np.array(list(tokens.values()))),
        columns=tuple(columns),
        tokens=tokens,
        logits={at: (b, columns.index(column)) for at, (b, column) in mine.items()},
    )


class Noting(CacheLayerMixin):  # type: ignore[misc]
    """Stands in for a layer's cache in the very first forward pass."""

    is_sliding = False
    shape: LayerShape | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.shape = LayerShape(key_states.shape[1], key_states.shape[3], value_states.shape[3])
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1


class _Past(Noting):
    """As if there had been a token before."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        first_k, first_v = key_states[:, :, :1], value_states[:, :, :1]
        return torch.cat((first_k, key_states), 2), torch.cat((first_v, value_states), 2)

    def get_seq_length(self) -> int:
        return 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length + 1, 0


def reach(loaded: LoadedModel, layers: int) -> Reach:
    """Which tokens its modules are handed, where there is a past. `layers`: that keep one."""
    model, device = loaded.model, loaded.device
    watch = Watch(loaded.layout)
    arguments: dict[str, Any] = kept_of(model, device)
    if "position_ids" in inspect.signature(model.forward).parameters:
        arguments["position_ids"] = torch.arange(1, 1 + TOKENS, device=device).unsqueeze(0)
    try:
        with torch.inference_mode(), watch.on(model):
            model(
                input_ids=torch.zeros(1, TOKENS, dtype=torch.int64, device=device),
                attention_mask=torch.ones(1, 1 + TOKENS, dtype=torch.int64, device=device),
                past_key_values=Cache(layers=[_Past() for _ in range(layers)]),
                use_cache=True,
                **arguments,
            )
    except torch.OutOfMemoryError:
        raise
    except UNSUITED as error:
        raise UnsupportedModel(
            f"it does not run on a past ({str(error).strip() or repr(error)})"
        ) from error
    return watch.reach()


def measure(loaded: LoadedModel) -> Shapes:
    """See what each layer stores a token, by its number in transformers' cache.

    Raises:
        UnsupportedModel: the model keeps something else between two tokens than keys and
            values, or cannot run on a cache that is not its own.
    """
    model = loaded.model
    model.set_attn_implementation(ATTENTION)
    cache = Cache(layer_class_to_replicate=Noting)
    ids = torch.zeros(1, 2, dtype=torch.int64, device=loaded.device)
    try:
        with torch.inference_mode():
            model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                use_cache=True,
            )
    except torch.OutOfMemoryError:
        raise
    except UNSUITED as error:
        raise UnsupportedModel(
            f"it does not run on a cache of keys and values ({str(error).strip() or repr(error)})"
        ) from error
    if not cache.layers:
        raise UnsupportedModel("it keeps no keys and values in transformers' cache")
    if not is_plain(model, loaded.device):
        choose_plain(model)
    shapes: Shapes = {}
    for number, layer in enumerate(cache.layers):
        if layer.shape is None:
            raise UnsupportedModel(f"its layer {number} keeps something else than keys and values")
        shapes[number] = layer.shape
    return shapes
