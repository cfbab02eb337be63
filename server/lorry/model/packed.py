"""Rows through transformers' modeling code, all tokens packed in one row.

Positions are explicit and transformers keeps no cache of its own; attention and the
adapters find the step's plans through `attending` and `planned`.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from lorry.errors import UnsupportedModel
from lorry.model import attention
from lorry.model.attention import AttentionStep, Recorder, SinglesKernel, attending
from lorry.model.base_loader import LoadedModel
from lorry.model.inputs import Inputs
from lorry.model.kv_cache import KVCache, Shapes
from lorry.model.logits import Logits
from lorry.model.mixing import mixer
from lorry.model.padded import UNSUITED
from lorry.model.reach import TOKENS, Reach, Watch, kept_of
from lorry.model.sight import Masks
from lorry.model.virtual_tokens import VirtualTokenSlots
from lorry_adapters.lora.layers import LoraModel


class PackedModel:
    """The base with slots for adapters of every kind."""

    def __init__(
        self, loaded: LoadedModel, cache: KVCache, lora: LoraModel, prompts: VirtualTokenSlots
    ) -> None:
        self._model = loaded.model
        self._cache = cache
        self._lora = lora
        self._prompts = prompts
        parameters = inspect.signature(loaded.model.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self.name = "torch"
        self.inputs_on = loaded.device

    def run(self, inputs: Inputs, singles: SinglesKernel | None = None) -> Logits:
        """Logits of the wanted tokens. `singles`: None for torch's operations."""
        keep = {"logits_to_keep": inputs.wanted_K} if self._keeps_logits else {}
        head = inputs.head if self._keeps_logits else inputs.body
        step = AttentionStep(inputs.attention, self._cache, singles)
        with attending(step), self._lora.planned(inputs.body, head):
            output = self._model(
                **self._tokens(inputs),
                position_ids=inputs.positions_1T,
                use_cache=False,
                **keep,
            )
        logits_TV: Tensor = output.logits[0]
        return Logits.of(logits_TV if self._keeps_logits else logits_TV[inputs.wanted_K])

    def hidden(self, inputs: Inputs) -> Tensor:
        """`[K, H]`, what the output head would see of the wanted tokens."""
        with self._lora.tapping() as seen:
            self.run(inputs)
        # As it came in: some models scale or cap what the head makes of it.
        hidden_XH = seen[-1].flatten(0, -2)
        return hidden_XH if self._keeps_logits else hidden_XH[inputs.wanted_K]

    def _tokens(self, inputs: Inputs) -> dict[str, Tensor]:
        """Ids, and embeddings only where an adapter brings some."""
        if not inputs.virtual:
            return {"input_ids": inputs.ids_1T}
        embeddings_1TH = self._model.get_input_embeddings()(inputs.ids_1T)
        return {"inputs_embeds": self._prompts.put(embeddings_1TH, inputs.virtual)}


def reach(loaded: LoadedModel) -> Reach:
    """Which tokens its modules are handed; the model attends by our attention already."""
    watch = Watch(loaded.layout)
    ids = torch.zeros(1, TOKENS, dtype=torch.int64, device=loaded.device)
    positions = torch.arange(TOKENS, device=loaded.device).unsqueeze(0)
    kept = kept_of(loaded.model, loaded.device)
    with torch.inference_mode(), attending(Recorder()), watch.on(loaded.model):
        loaded.model(input_ids=ids, position_ids=positions, use_cache=False, **kept)
    return watch.reach()


def measure(loaded: LoadedModel) -> Shapes:
    """Switch the model to our attention, and see what each layer stores a token.

    Raises:
        UnsupportedModel: its modeling code does not go through transformers' attention
            interface, or asks for something that we would drop.
    """
    attention.register()
    model = loaded.model
    recorder = Recorder(masks=Masks(loaded.max_model_len))
    try:
        model.set_attn_implementation(attention.SURVEY)
        ids = torch.zeros(1, 2, dtype=torch.int64, device=loaded.device)
        positions = torch.arange(2, device=loaded.device).unsqueeze(0)
        with torch.inference_mode(), attending(recorder):
            model(input_ids=ids, position_ids=positions, use_cache=False)
        model.set_attn_implementation(attention.NAME)
    except torch.OutOfMemoryError:
        raise
    except UNSUITED as error:
        raise UnsupportedModel(f"its attention cannot be replaced ({error})") from error
    if not recorder.shapes:
        raise UnsupportedModel("its attention does not go through transformers' interface")
    with attending(Recorder()):
        carrier = mixer(model, loaded.device)
    if carrier is not None:
        raise UnsupportedModel(
            f"{carrier} keeps a state from token to token beside keys and values"
        )
    return dict(recorder.shapes.items())
