"""One GGUF file -> a folder of safetensors and a tokenizer, in float32.

float32 holds every value that the file's blocks stand for, so that nothing is rounded
before bitsandbytes quantizes. It needs four bytes a weight on disk and in memory,
once; afterwards the folder loads as any other model does.
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
    PreTrainedTokenizerFast,
)

from lorry.errors import ModelError, UnsupportedModel
from lorry.model.progress import Say
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


def convert(file: Path, into: Path, say: Say) -> None:
    """Write the model in `file` to the empty folder `into`. Raises ModelError."""
    if not is_gguf(file):
        raise ModelError(f"{file} is not a GGUF file")
    try:
        reader = GGUFReader(file)
        weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{file} is damaged: {error}") from error
    require_room(into, 4 * weights, f"converting {file.name}")
    say(f"converting {file.name} ({weights / 1e6:.0f} million weights), once")
    where = {"gguf_file": file.name, "trust_remote_code": False}
    try:
        with quiet():
            config = AutoConfig.from_pretrained(file.parent, **where)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
            loaded = AutoModelForCausalLM.from_pretrained(
                file.parent,
                dtype=torch.float32,
                attn_implementation="eager",
                **where,
                **_dense(),
            )
            state = loaded.state_dict()
            # `loaded` counts as quantized and would refuse to be saved.
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.load_state_dict(state, strict=True, assign=True)
            model.tie_weights()
            model.generation_config = loaded.generation_config
            _set_special_tokens(reader, tokenizer, model.generation_config)
            model.save_pretrained(into)
            tokenizer.save_pretrained(into)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise UnsupportedModel(
            f"transformers {transformers.__version__} cannot read the GGUF file {file}: {error}"
        ) from error


def _set_special_tokens(
    reader: GGUFReader, tokenizer: PreTrainedTokenizerFast, generation: GenerationConfig
) -> None:
    """What the file says begins and ends a text; some releases of transformers mix them up."""
    for field, attribute in _SPECIAL:
        token_id = _token_id(reader, field)
        if token_id is not None:
            setattr(tokenizer, attribute, tokenizer.convert_ids_to_tokens(token_id))
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
