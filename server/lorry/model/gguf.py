"""One GGUF file -> a folder with a config, a tokenizer and the weights under transformers' names.

The weights go over one by one: the numbers of one tensor are in memory at a time, and linears stay
in the blocks of the file until a base is loaded (`lorry.model.gguf_blocks`). What is one tensor
here and several there, as experts are, transformers converts: then the whole model is in memory in
float32 once, and the folder has float32, which holds every value that blocks stand for.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from gguf import GGUFReader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lorry.errors import ModelError, UnsupportedModel
from lorry.model import gguf_blocks, gguf_names
from lorry.model.progress import Meter, Say
from lorry.model.quiet import quiet
from lorry.model.store import require_room

FORMAT = 1
"""Part of a converted folder's name: raise it when the conversion changes."""

_MAGIC = b"GGUF"

_SPECIAL = (
    ("bos_token_id", "bos_token"),
    ("eos_token_id", "eos_token"),
    ("unknown_token_id", "unk_token"),
    ("padding_token_id", "pad_token"),
)


def is_gguf(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def convert(
    file: Path,
    into: Path,
    say: Say,
    meter: Meter = lambda what, done, total: None,
    *,
    dense: bool = False,
) -> None:
    """Write the model in `file` to the empty folder `into`. `dense`: in float32, which transformers
    reads without us. Raises ModelError."""
    if not is_gguf(file):
        raise ModelError(f"{file} is not a GGUF file")
    try:
        reader = GGUFReader(file)
        weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{file} is damaged: {error}") from error
    what = f"converting {file.name}"
    say(f"{what} ({weights / 1e6:.0f} million weights), once")
    where = {"gguf_file": file.name, "trust_remote_code": False}
    try:
        with quiet():
            config = AutoConfig.from_pretrained(file.parent, **where)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            _set_special_tokens(reader, tokenizer)
            tokenizer.save_pretrained(into)
        try:
            with quiet():
                tensors = gguf_names.stored_tensors(file, reader, model, dense=dense)
        except gguf_names.UnmappedTensor as unknown:
            say(f"{unknown}: all of {file.name} is read into memory for that")
            require_room(into, 4 * weights, what)
            with quiet():
                _convert_whole(file, reader, model, into)
            return
        require_room(into, sum(tensor.nbytes for tensor in tensors), what)
        _set_ends(reader, model.generation_config)
        model.config.architectures = [type(model).__name__]
        model.config.dtype = torch.float32
        model.config.save_pretrained(into)
        model.generation_config.save_pretrained(into)
        gguf_blocks.write(tensors, into, lambda done: meter(what, done, weights))
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise UnsupportedModel(
            f"transformers {transformers.__version__} cannot read the GGUF file {file}: {error}"
        ) from error


def _convert_whole(file: Path, reader: GGUFReader, model: PreTrainedModel, into: Path) -> None:
    """`model` is empty. It and its weights are written, in float32."""
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        trust_remote_code=False,
        dtype=torch.float32,
        attn_implementation="eager",
        **_dense(),
    )
    # `loaded` counts as quantized and would refuse to be saved.
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    _set_ends(reader, model.generation_config)
    model.save_pretrained(into)


def _set_special_tokens(reader: GGUFReader, tokenizer: PreTrainedTokenizerFast) -> None:
    """What the file says begins and ends a text; some releases of transformers mix them up."""
    for field, attribute in _SPECIAL:
        token_id = _token_id(reader, field)
        if token_id is not None:
            setattr(tokenizer, attribute, tokenizer.convert_ids_to_tokens(token_id))


def _set_ends(reader: GGUFReader, generation: GenerationConfig) -> None:
    # The end of a turn is not always the end of a text.
    ends = [_token_id(reader, "eos_token_id"), _token_id(reader, "eot_token_id")]
    known = list(dict.fromkeys(end for end in ends if end is not None))
    if known:
        generation.eos_token_id = known if len(known) > 1 else known[0]


def _token_id(reader: GGUFReader, field: str) -> int | None:
    found = reader.get_field(f"tokenizer.ggml.{field}")
    return None if found is None else int(found.contents())


def _dense() -> dict[str, object]:
    # Newer releases otherwise keep the blocks, and may fetch kernels from the hub to do so.
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}
