"""A tiny Llama as a GGUF file, and a wheel with that file in it: what the catalog fetches."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from support.tokenizer import BOS, EOS, PAD, SPECIAL, VOCAB_SIZE, build_tokenizer

HIDDEN = 64
HEADS = 4
LAYERS = 2
POSITIONS = 256
IM_END = SPECIAL.index("<|im_end|>")


def write_gguf(path: Path, *, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Writes the file; gives the values that its blocks stand for, by GGUF name.

    Projections and embeddings are Q8_0, norms float32, as in files from the wild.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB_SIZE)
    write_tokenizer(writer)
    shapes = {"token_embd.weight": (VOCAB_SIZE, HIDDEN), "output.weight": (VOCAB_SIZE, HIDDEN)}
    shapes["output_norm.weight"] = (HIDDEN,)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"{block}{name}.weight"] = (HIDDEN, HIDDEN)
        for name in ("ffn_gate", "ffn_up"):
            shapes[f"{block}{name}.weight"] = (2 * HIDDEN, HIDDEN)
        shapes[f"{block}ffn_down.weight"] = (HIDDEN, 2 * HIDDEN)
        for name in ("attn_norm", "ffn_norm"):
            shapes[f"{block}{name}.weight"] = (HIDDEN,)
    values = {}
    for name, shape in shapes.items():
        value = random.standard_normal(shape, dtype=np.float32) / 8
        if len(shape) == 1:
            writer.add_tensor(name, value)
            values[name] = value
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        blocks = gguf.quants.quantize(value, kind)
        writer.add_tensor(name, blocks, raw_dtype=kind)
        values[name] = gguf.quants.dequantize(blocks, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def write_wheel(path: Path, distribution: str, version: str, member: str, content: Path) -> Path:
    """A wheel that holds `content` as `member`, in the folder `path`; gives its file."""
    stem = f"{distribution.replace('-', '_')}-{version}"
    wheel = path / f"{stem}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    # Lorry must not install the distribution: what it depends on does not exist.
    metadata += "Requires-Dist: a-distribution-that-nobody-made==9.9\n"
    files = {
        member: content.read_bytes(),
        f"{stem}.dist-info/METADATA": metadata.encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(data)}\n"
        archive.writestr(f"{stem}.dist-info/RECORD", record + f"{stem}.dist-info/RECORD,,\n")
    return wheel


def write_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokenizer = build_tokenizer(add_bos=False)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_eot_token_id(IM_END)
    writer.add_chat_template(str(tokenizer.chat_template))
