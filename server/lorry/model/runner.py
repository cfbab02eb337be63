"""The only forward pass: a batch in, a token for each row that wants one out.

transformers' modeling code is called on one packed row of tokens, with explicit
positions and no cache of its own; attention and LoRA find the step's plans
through `attending` and `planned`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorry.core import Batch, RowResult, Sample, TokenLogprob
from lorry.errors import UnsupportedModel
from lorry.model import attention
from lorry.model.attention import Recorder, Step, attending
from lorry.model.inputs import Inputs, build_inputs
from lorry.model.kv_cache import KVCache, LayerShape
from lorry.model.loader import LoadedModel
from lorry.model.logits import Logits
from lorry.model.native.lean import LeanModel
from lorry.model.sampler import logprobs_of, sample
from lorry_adapters.lora.layers import LoraModel

if TYPE_CHECKING:
    from lorry_adapters.lora.weights import AdapterWeights


class Runner:
    """Owns the model from here on: its attention, its linears and its cache."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        kv_blocks: int,
        block_size: int,
        max_slots: int,
        max_rank: int,
        shapes: dict[nn.Module, LayerShape] | None = None,
    ) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._dtype = loaded.dtype
        self.cache = KVCache(
            shapes if shapes is not None else measure(loaded),
            num_blocks=kv_blocks,
            block_size=block_size,
            dtype=loaded.dtype,
            device=loaded.device,
        )
        self.lora = LoraModel(
            loaded.model,
            loaded.layout,
            num_slots=max_slots,
            max_rank=max_rank,
            dtype=loaded.dtype,
            device=loaded.device,
        )
        self._lean: LeanModel | None = None
        self._digests: dict[int, str] = {}
        parameters = inspect.signature(loaded.model.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters

    def place(self, slot: int, weights: AdapterWeights) -> None:
        """Copy an adapter's weights into a slot. Between two runs only."""
        self._digests[slot] = weights.digest
        if self._lean is None:
            self.lora.place(slot, weights)
        else:
            self._lean.place(slot, weights)

    @property
    def slot_bytes(self) -> int:
        """Reserved for the slots so far, all modules."""
        return self.lora.slot_bytes if self._lean is None else self._lean.slot_bytes

    def go_lean(self, lean: LeanModel) -> None:
        """Run every further step through the compiled path, which has slots of its own."""
        assert self.lora.slot_bytes == 0, "adapters were placed before"
        self._lean = lean

    @property
    def path(self) -> str:
        """What runs the steps: `native` or `torch`."""
        return "torch" if self._lean is None else "native"

    def settle(self) -> None:
        """After the self-check: let go of what only the other path needs."""
        if self._lean is not None:
            self._lean.take_over()
            # What is left to PyTorch is small. Its own threads would spin for a while
            # after each operation, on the cores that the next step needs.
            torch.set_num_threads(1)

    def close(self) -> None:
        if self._lean is not None:
            self._lean.close()

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[RowResult]:
        """One forward pass; a result for each row, in the batch's order."""
        inputs = build_inputs(
            batch,
            block_size=self.cache.block_size,
            dtype=self._dtype,
            device=self._device,
            digests=self._digests,
        )
        logits = self._forward(inputs)
        results: list[RowResult | None] = [None] * len(batch.rows)
        drawn = self._sample(batch, inputs, logits)
        for place, index in enumerate(inputs.order):
            row = batch.rows[index]
            first, _ = inputs.wanted[place]
            targets = row.prompt_targets or ()
            prompt = logprobs_of(logits[first : first + len(targets)], targets)
            if place in drawn:
                token, top = drawn[place]
                results[index] = RowResult(token, top, prompt)
            else:
                results[index] = RowResult(None, (), prompt)
        return [result for result in results if result is not None]

    def _forward(self, inputs: Inputs) -> Logits:
        """Logits of the wanted tokens."""
        if self._lean is not None:
            return self._lean.run(inputs)
        keep = {"logits_to_keep": inputs.wanted_K} if self._keeps_logits else {}
        step = Step(inputs.attention, self.cache)
        head = inputs.head if self._keeps_logits else inputs.body
        with attending(step), self.lora.planned(inputs.body, head):
            output = self._model(
                input_ids=inputs.ids_1T,
                position_ids=inputs.positions_1T,
                use_cache=False,
                **keep,
            )
        logits_TV: Tensor = output.logits[0]
        return Logits.of(logits_TV if self._keeps_logits else logits_TV[inputs.wanted_K])

    def _sample(
        self, batch: Batch, inputs: Inputs, logits: Logits
    ) -> dict[int, tuple[TokenLogprob, tuple[TokenLogprob, ...]]]:
        """By place in the packed row: the drawn token and the likeliest."""
        places: list[int] = []
        samples: list[Sample] = []
        lasts: list[int] = []
        for place, index in enumerate(inputs.order):
            wish = batch.rows[index].sample
            if wish is not None:
                first, count = inputs.wanted[place]
                places.append(place)
                samples.append(wish)
                lasts.append(first + count - 1)
        if not places:
            return {}
        chosen = logits if len(lasts) == len(logits) else logits[lasts]
        return dict(zip(places, sample(chosen, samples), strict=True))


def measure(loaded: LoadedModel) -> dict[nn.Module, LayerShape]:
    """Switch the model to our attention, and see what each layer stores a token.

    Raises:
        UnsupportedModel: its modeling code does not go through transformers' attention
            interface, or asks for something that we would drop.
    """
    attention.register()
    model, name = loaded.model, loaded.layout.architecture
    recorder = Recorder()
    try:
        model.set_attn_implementation(attention.NAME)
        ids = torch.zeros(1, 2, dtype=torch.int64, device=loaded.device)
        positions = torch.arange(2, device=loaded.device).unsqueeze(0)
        with torch.inference_mode(), attending(recorder):
            model(input_ids=ids, position_ids=positions, use_cache=False)
    except (KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"{name} is not served: its attention cannot be replaced ({error})"
        ) from error
    if not recorder.shapes:
        raise UnsupportedModel(
            f"{name} is not served: its attention does not go through transformers' interface"
        )
    return recorder.shapes
